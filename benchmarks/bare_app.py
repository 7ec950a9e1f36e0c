"""The yardstick of a gateway: FastAPI that answers a constant, under the same server and with the same options."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

from api.server import bind

ANSWER = (
    b'{"id":"chatcmpl-0","object":"chat.completion","created":0,"model":"constant","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,'
    b'"completion_tokens":1,"total_tokens":8}}'
)

app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


@app.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    await request.body()
    return Response(ANSWER, media_type="application/json")


def main() -> None:
    bound = bind("127.0.0.1", 0)
    sys.stdout.write(f"http://127.0.0.1:{bound.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", log_config=None, access_log=False, server_header=False, date_header=False
    )
    uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    main()
