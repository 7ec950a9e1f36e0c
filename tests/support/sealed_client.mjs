// Runs the JavaScript client for a test: reads one JSON task from standard input, writes one JSON result.

import nacl from "../../clients/third_party/tweetnacl/nacl-fast.js";
import { Exchange, NotSealed, sealedFetch } from "../../clients/darkbloom-sealed.mjs";

const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));

const tasks = {
  seal({ secret, publicKey, kid, nonce, text }) {
    const exchange = new Exchange({ kid, publicKey: bytes(publicKey) }, nacl.box.keyPair.fromSecretKey(bytes(secret)));
    return JSON.parse(exchange.seal(new TextEncoder().encode(text), bytes(nonce)));
  },
  open({ secret, publicKey, ciphertext }) {
    const exchange = new Exchange({ kid: "", publicKey: bytes(publicKey) }, nacl.box.keyPair.fromSecretKey(bytes(secret)));
    try {
      return { text: new TextDecoder().decode(exchange.open(ciphertext)) };
    } catch (error) {
      if (error instanceof NotSealed) return { refused: true };
      throw error;
    }
  },
  async ask({ url, key, path, body, kid = null }) {
    const onTheWire = [];
    const fetch = async (input, init) => {
      onTheWire.push(String(init?.body ?? ""));
      return globalThis.fetch(input, init);
    };
    try {
      const answer = await sealedFetch(url, { fetch, kid })(new URL(path, url), {
        method: body === undefined ? "GET" : "POST",
        headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
      return { status: answer.status, text: await answer.text(), type: answer.headers.get("content-type"), onTheWire };
    } catch (error) {
      if (error instanceof NotSealed) return { refused: error.message };
      throw error;
    }
  },
};

let input = "";
for await (const part of process.stdin) input += part;
const { task, ...parameters } = JSON.parse(input);
process.stdout.write(JSON.stringify(await tasks[task](parameters)));
