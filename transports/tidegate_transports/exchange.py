"""What an HTTP request means and what is answered: bytes in, bytes out, no socket.

The shells (`http` on aiohttp) move the bytes; everything about paths, methods, bodies and errors is decided here.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec

from tidegate import END, App, EncodeError, Handler, HandlerError, Refused, TidegateError
from tidegate.context import RequestInfo
from tidegate_batching import Stream

__all__ = ["Exchange", "Request", "Response"]

log = logging.getLogger("tidegate.http")

READER_PATIENCE = 30.0
"""Seconds that a stream waits for a client that does not read."""

_SAFE_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body complete; header names are looked up as HTTP spells them."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Parts:
    """A stream's bytes as they come. Closing takes its item out of the running batch, whether or not it was read."""

    def __init__(self, lines: AsyncGenerator[bytes], chunks: Stream[object]) -> None:
        self._lines = lines
        self._chunks = chunks

    def __aiter__(self) -> AsyncGenerator[bytes]:
        return self._lines

    async def aclose(self) -> None:
        """Read no further."""
        await self._lines.aclose()
        # A generator that was never begun has not seen its own `finally`.
        await self._chunks.aclose()


@dataclass(frozen=True, slots=True)
class Response:
    """What to send back: `body`, or where there are any the parts as they come; close `parts` when nobody reads on."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    parts: Parts | None = None


class Exchange:
    """One app's HTTP side."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._routes = {handler.options.path: handler for handler in app.handlers.values()}
        if len(app.handlers) == 1:
            self._routes["/predict"] = next(iter(app.handlers.values()))

    async def respond(self, request: Request) -> Response:
        """Answer one request; every failure becomes a problem document, none escapes."""
        request_id = request_id_of(request.headers)
        handler = self._routes.get(request.path)
        if handler is None:
            response = self._built_in(request, request_id)
        elif request.method != "POST":
            response = problem(405, f"{request.path} answers POST", "method-not-allowed", request_id, {"Allow": "POST"})
        else:
            response = await self._call(handler, request, request_id)
        response.headers["X-Request-Id"] = request_id
        return response

    async def _call(self, handler: Handler[..., object], request: Request, request_id: str) -> Response:
        try:
            accept = request.headers.get("Accept")
            info = RequestInfo(request_id, _forwarded(handler, request), READER_PATIENCE, len(request.body))
            if not handler.streams:
                handler.codec.check_accept(accept)
            value = handler.codec.decode(request.body, request.headers.get("Content-Type"))
            if handler.streams:
                return await self._stream(handler, value, info)
            answer = await self._app.answer(handler.name, value, info=info)
            body, media_type = handler.codec.encode(answer.value, accept, allow_nan=handler.options.allow_nan)
        except TidegateError as error:
            return self._failed(handler, error, request_id)
        except Exception as error:  # noqa: BLE001 - a type of the user's may raise anything while it is read or written
            return self._failed(handler, HandlerError.wrap(error), request_id)
        timing = (
            f'queue;dur={answer.queued * 1e3:.3f}, run;dur={answer.ran * 1e3:.3f}, batch;desc="{answer.batch_size}"'
        )
        return Response(200, body, media_type, headers={"Server-Timing": timing})

    async def _stream(self, handler: Handler[..., object], value: object, info: RequestInfo) -> Response:
        chunks = self._app.stream(handler.name, value, info=info)
        try:
            # What fails before the first chunk still has a status to fail with.
            first = await anext(chunks, END)
        except BaseException:
            await chunks.aclose()
            raise
        parts = Parts(self._lines(handler, first, chunks, info.request_id), chunks)
        return Response(200, b"", "application/x-ndjson", parts=parts)

    async def _lines(
        self, handler: Handler[..., object], first: object, chunks: Stream[object], request_id: str
    ) -> AsyncGenerator[bytes]:
        """A stream as JSON lines; the last says how it ended, so that a broken connection cannot look like an end."""
        async with chunks:
            try:
                if first is not END:
                    yield _chunk_line(handler, first)
                    async for chunk in chunks:
                        yield _chunk_line(handler, chunk)
            except TidegateError as error:
                failure = {
                    "code": error.code,
                    "status": error.status,
                    "message": self._told(handler, error, request_id),
                }
                yield msgspec.json.encode({"error": failure}) + b"\n"
            else:
                yield b'{"end":true}\n'

    def _failed(self, handler: Handler[..., object], error: TidegateError, request_id: str) -> Response:
        headers = {"Retry-After": f"{max(1, round(error.retry_after))}"} if isinstance(error, Refused) else {}
        return problem(error.status, self._told(handler, error, request_id), error.code, request_id, headers)

    def _told(self, handler: Handler[..., object], error: TidegateError, request_id: str) -> str:
        """What the caller reads of an error; the log gets the rest."""
        detail = error.detail
        if isinstance(error, HandlerError):
            # The text may hold anything of the user's; callers get the id by which the log names it.
            log.error("%s failed, request %s: %s\n%s", handler.name, request_id, error, error.traceback)
            detail = "internal error"
        elif error.status >= 500:
            log.error(
                "%s failed, request %s: %s", handler.name, request_id, error, exc_info=isinstance(error, EncodeError)
            )
        return detail

    def _built_in(self, request: Request, request_id: str) -> Response:
        if request.path != "/health":
            paths = ", ".join([*(f"POST {path}" for path in self._routes), "GET /health"])
            return problem(404, f"nothing is at {request.path}; there is {paths}", "not-found", request_id)
        if request.method not in ("GET", "HEAD"):
            return problem(405, "/health answers GET", "method-not-allowed", request_id, {"Allow": "GET, HEAD"})
        return Response(200, msgspec.json.encode({"status": "ok", "handlers": list(self._app.handlers)}))


def _chunk_line(handler: Handler[..., object], chunk: object) -> bytes:
    encoded = handler.codec.encode_json(chunk, allow_nan=handler.options.allow_nan)
    return b'{"chunk":' + encoded + b"}\n"


def _forwarded(handler: Handler[..., object], request: Request) -> dict[str, str]:
    return {name: request.headers[name] for name in handler.options.forward_headers if name in request.headers}


def _printable(text: str) -> str:
    """Text that UTF-8 can write: a header or a file name may have brought half a surrogate pair along."""
    return text.encode("utf-8", "replace").decode()


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's own id where it is safe to log and echo, else a new one."""
    request_id = headers.get("X-Request-Id", "")
    return request_id if _SAFE_ID.fullmatch(request_id) else secrets.token_hex(8)


def problem(status: int, detail: str, code: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """An error as RFC 9457 writes it, with `code` for programs and the request's id for the log."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Client Closed Request" if status == 499 else "Error"
    document = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": _printable(detail),
        "code": code,
        "request_id": request_id,
    }
    headers = {**(headers or {}), "X-Request-Id": request_id}
    return Response(status, msgspec.json.encode(document), "application/problem+json", headers)
