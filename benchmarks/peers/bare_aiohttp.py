"""aiohttp without batching, on uvloop as tidegate runs it."""

from __future__ import annotations

import sys

import uvloop
from aiohttp import web
from bare_answers import answer_bytes


async def infer(request: web.Request) -> web.Response:
    return web.Response(body=answer_bytes(await request.read()), content_type="application/json")


if __name__ == "__main__":
    app = web.Application(client_max_size=32 << 20)
    app.router.add_post("/infer", infer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, loop=uvloop.new_event_loop())
