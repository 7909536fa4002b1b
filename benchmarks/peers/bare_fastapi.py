"""FastAPI under uvicorn without batching, the handler on its thread pool as blocking models are."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from bare_answers import answer
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

app = FastAPI()


@app.post("/infer")
async def infer(request: Request) -> Any:
    return await run_in_threadpool(answer, await request.body())


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="error", loop="uvloop")
