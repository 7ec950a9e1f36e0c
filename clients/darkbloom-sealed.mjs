// Seals requests to a Darkbloom coordinator and opens its sealed answers, below an unmodified SDK:
//
//     const client = new OpenAI({ baseURL: url + "/v1", apiKey, fetch: sealedFetch(url) });
//
// Runs in Node 20 and, bundled, in browsers. Every request to an endpoint that can be sealed is sealed, and an answer to it
// that claims success in plain text is refused. Requests to other endpoints go out as they are.

import nacl from "./third_party/tweetnacl/nacl-fast.js";

const MEDIA_TYPE = "application/eigeninference-sealed+json";
const KEY_MILLISECONDS = 3_600_000;
const NONCE_BYTES = 24;
const SEALABLE = new Set([
  "/v1/chat/completions",
  "/v1/responses",
  "/v1/completions",
  "/v1/messages",
  "/v1/messages/count_tokens",
  "/v1/images/generations",
]);

export class NotSealed extends Error {}

const toBytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

function toBase64(bytes) {
  let text = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

/** One request and its answer, under a key pair that nothing else uses. `key` has kid and publicKey (32 bytes). */
export class Exchange {
  constructor(key, pair = nacl.box.keyPair()) {
    this.kid = key.kid;
    this.publicKey = pair.publicKey;
    this.shared = nacl.box.before(key.publicKey, pair.secretKey);
  }

  /** The envelope of a request, as JSON text. */
  seal(body, nonce = nacl.randomBytes(NONCE_BYTES)) {
    const box = nacl.box.after(body, nonce, this.shared);
    const sealed = new Uint8Array(NONCE_BYTES + box.length);
    sealed.set(nonce);
    sealed.set(box, NONCE_BYTES);
    return JSON.stringify({
      kid: this.kid,
      ephemeral_public_key: toBase64(this.publicKey),
      ciphertext: toBase64(sealed),
    });
  }

  /** Base64 of nonce and box to the bytes inside; throws NotSealed. */
  open(ciphertext) {
    let opened = null;
    try {
      const sealed = toBytes(ciphertext);
      opened = nacl.box.open.after(sealed.subarray(NONCE_BYTES), sealed.subarray(0, NONCE_BYTES), this.shared);
    } catch {
      // what is not base64 or too short is not sealed either
    }
    if (opened === null) throw new NotSealed("the answer does not open");
    return opened;
  }
}

/** The events of a sealed stream, opened one by one. */
function openedEvents(exchange) {
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  let pending = "";
  return new TransformStream({
    transform(part, controller) {
      const events = (pending + decoder.decode(part, { stream: true })).split("\n\n");
      pending = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) throw new NotSealed("an event of the stream is not sealed");
        controller.enqueue(exchange.open(event.slice("data: ".length)));
        controller.enqueue(encoder.encode("\n\n"));
      }
    },
    flush() {
      if (pending) throw new NotSealed("the stream was cut in the middle of an event");
    },
  });
}

/** A `fetch` for one coordinator. With `kid` its key is pinned: another one is refused. */
export function sealedFetch(url, { fetch = globalThis.fetch, kid = null } = {}) {
  let key = null;
  let fetchedAt = 0;

  async function currentKey() {
    if (key !== null && Date.now() - fetchedAt < KEY_MILLISECONDS) return key;
    const answer = await fetch(new URL("/v1/encryption-key", url));
    if (answer.status !== 200) throw new NotSealed(`the coordinator has no key to seal to: status ${answer.status}`);
    const shown = await answer.json();
    if (kid !== null && shown.kid !== kid) throw new NotSealed("the coordinator shows another key than the pinned one");
    key = { kid: shown.kid, publicKey: toBytes(shown.public_key) };
    fetchedAt = Date.now();
    return key;
  }

  return async function sealed(input, init = {}) {
    const request = new Request(input, init);
    if (request.method !== "POST" || !SEALABLE.has(new URL(request.url).pathname)) return fetch(request);
    const body = new Uint8Array(await request.arrayBuffer());
    for (const mayBeOld of [true, false]) {
      const exchange = new Exchange(await currentKey());
      const headers = new Headers(request.headers);
      headers.delete("content-length");
      headers.set("content-type", MEDIA_TYPE);
      const answer = await fetch(request.url, {
        method: "POST",
        headers,
        body: exchange.seal(body),
        signal: request.signal,
      });
      const shape = { status: answer.status, statusText: answer.statusText, headers: new Headers(answer.headers) };
      if (answer.headers.get("x-eigen-sealed") === "true") {
        if (answer.headers.get("content-type").startsWith("text/event-stream")) {
          return new Response(answer.body.pipeThrough(openedEvents(exchange)), shape);
        }
        const envelope = await answer.json();
        shape.headers.set("content-type", "application/json");
        shape.headers.delete("content-length");
        return new Response(exchange.open(envelope.ciphertext), shape);
      }
      if (answer.ok) throw new NotSealed("the answer claims success in plain text");
      const text = await answer.text();
      if (!(mayBeOld && answer.status === 400 && text.includes('"kid_mismatch"'))) return new Response(text, shape);
      key = null;
    }
  };
}
