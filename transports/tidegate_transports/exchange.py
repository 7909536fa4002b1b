"""What an HTTP request means and what is answered: bytes in, bytes out, no socket.

The shells (`http` on aiohttp) move the bytes; everything about paths, methods, bodies and errors is decided here.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec

from tidegate import App, EncodeError, Handler, HandlerError, Refused, TidegateError

__all__ = ["Exchange", "Request", "Response"]

log = logging.getLogger("tidegate.http")

_SAFE_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body complete; header names are looked up as HTTP spells them."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """What to send back."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


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
            value = handler.codec.decode_json(request.body)
            answer = await self._app.answer(handler.name, value)
            body = handler.codec.encode_json(answer.value)
        except TidegateError as error:
            return self._failed(handler, error, request_id)
        except Exception as error:  # noqa: BLE001 - a type of the user's may raise anything while it is read or written
            return self._failed(handler, HandlerError.wrap(error), request_id)
        timing = (
            f'queue;dur={answer.queued * 1e3:.3f}, run;dur={answer.ran * 1e3:.3f}, batch;desc="{answer.batch_size}"'
        )
        return Response(200, body, headers={"Server-Timing": timing})

    def _failed(self, handler: Handler[..., object], error: TidegateError, request_id: str) -> Response:
        detail = error.detail
        if isinstance(error, HandlerError):
            # The text may hold anything of the user's; callers get the id by which the log names it.
            log.error("%s failed, request %s: %s\n%s", handler.name, request_id, error, error.traceback)
            detail = "internal error"
        elif error.status >= 500:
            log.error(
                "%s failed, request %s: %s", handler.name, request_id, error, exc_info=isinstance(error, EncodeError)
            )
        headers = {"Retry-After": f"{max(1, round(error.retry_after))}"} if isinstance(error, Refused) else {}
        return problem(error.status, detail, error.code, request_id, headers)

    def _built_in(self, request: Request, request_id: str) -> Response:
        if request.path != "/health":
            paths = ", ".join([*(f"POST {path}" for path in self._routes), "GET /health"])
            return problem(404, f"nothing is at {request.path}; there is {paths}", "not-found", request_id)
        if request.method not in ("GET", "HEAD"):
            return problem(405, "/health answers GET", "method-not-allowed", request_id, {"Allow": "GET, HEAD"})
        return Response(200, msgspec.json.encode({"status": "ok", "handlers": list(self._app.handlers)}))


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
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    headers = {**(headers or {}), "X-Request-Id": request_id}
    return Response(status, msgspec.json.encode(document), "application/problem+json", headers)
