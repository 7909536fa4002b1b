"""One request for a handler: its body to a value, the value through the app, what comes of it to bytes."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import Any, NamedTuple

from tidegate import END, App, EncodeError, Handler, HandlerError, Refused, TidegateError
from tidegate.codec import Codec
from tidegate.context import RequestInfo
from tidegate.media import JSON
from tidegate_batching import Stream
from tidegate_transports.codings import LARGE, WORTHWHILE, check_coding, compress_aside, inflated, wanted_coding
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.item_lines import LineAnswers, answers_by_line, answers_type, holds_lines
from tidegate_transports.logs import failed
from tidegate_transports.messages import Parts, Request, Response
from tidegate_transports.metrics import Tally
from tidegate_transports.preferences import DEFAULT_PRIORITY, Wait, priority_of, repeated, trace_of, wait_of
from tidegate_transports.problems import Refusal, problem, request_id_of
from tidegate_transports.streams import Format, format_of, parts_of

__all__ = ["Call", "Door", "Route", "is_large", "refused"]

READER_PATIENCE = 30.0
"""Seconds that a stream waits for a client that does not read."""

# A proxy that gathers a stream first would make it none.
_STREAMED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Route(NamedTuple):
    """A handler, and what every request for it asks of it."""

    handler: Handler[..., Any]
    name: str
    codec: Codec
    streams: bool
    allow_nan: bool
    forwarded: tuple[str, ...]

    @classmethod
    def to(cls, handler: Handler[..., Any]) -> Route:
        """The route to a handler."""
        options = handler.options
        return cls(
            handler, handler.name, handler.codec, handler.streams, options.allow_nan, tuple(options.forward_headers)
        )


class Door(NamedTuple):
    """What all calls share."""

    app: App
    options: HTTPOptions
    tally: Tally


class Call:
    """One request on its way through a handler."""

    __slots__ = ("_accept", "_door", "_headers", "_priority", "_request", "_route", "_started", "_wait", "request_id")

    def __init__(self, door: Door, route: Route, request: Request) -> None:
        headers = request.headers
        self._door = door
        self._route = route
        self._request = request
        self._headers = headers
        self._started = perf_counter()
        self.request_id = request_id_of(headers)
        self._accept = headers.get("accept")
        self._wait: Wait | None = None
        self._priority = DEFAULT_PRIORITY
        if "prefer" in headers:
            self._wait = wait_of(repeated(headers, "prefer"))
        if "priority" in headers:
            asked = priority_of(repeated(headers, "priority"))
            # Whoever could raise itself would, and then nobody is first.
            if asked > DEFAULT_PRIORITY or door.options.trust_priority:
                self._priority = asked

    async def response(self) -> Response:
        """What it is answered; every failure becomes a problem document, none escapes."""
        name, tally = self._route.name, self._door.tally
        try:
            response = await self._respond()
        except TidegateError as error:
            response = self._failed(error)
        except Refusal as refusal:
            response = refused(refusal, name, self._request, self.request_id, self._started)
        except Exception as error:  # noqa: BLE001 - a type of the user's may raise anything while it is read or written
            response = self._failed(HandlerError.wrap(error))
        except BaseException:
            # The client is gone; nginx's number for that is what operators know.
            tally.answered(name, 499)
            raise
        if self._wait is not None:
            response.headers["Preference-Applied"] = f"wait={self._wait.text}"
        tally.answered(name, response.status)
        if response.parts is None:
            if len(response.body) >= WORTHWHILE and self._door.options.gzip and wanted_coding(response, self._headers):
                await compress_aside(response)
            tally.took(name, perf_counter() - self._started)
        return response

    # ------------------------------------------------------------------ the body

    async def _respond(self) -> Response:
        route, headers, body = self._route, self._headers, self._request.body
        if "content-encoding" in headers and check_coding(repeated(headers, "content-encoding")):
            body = await inflated(body, self._door.options.max_body)
        content_type = headers.get("content-type")
        info = RequestInfo(self.request_id, self._forwarded(), READER_PATIENCE, len(body))
        if content_type is not None and content_type != JSON and holds_lines(route.handler, content_type):
            return self._many(body, info)
        # Before anything runs for an answer that nobody would take.
        wanted = format_of(self._accept) if route.streams else route.codec.check_accept(self._accept)
        if len(body) <= LARGE:
            value = route.codec.decode(body, content_type)
        else:
            value = await asyncio.to_thread(route.codec.decode, body, content_type)
        if wanted is not None:
            return await self._stream(value, info, wanted)
        return await self._one(value, info)

    def _forwarded(self) -> dict[str, str]:
        found = {}
        for name in self._route.forwarded:
            if name in self._headers:
                text = repeated(self._headers, name)
                if name != "traceparent" or trace_of(text):
                    found[name] = text
        return found

    # ------------------------------------------------------------------ the answer

    async def _one(self, value: Any, info: RequestInfo) -> Response:
        route, accept = self._route, self._accept
        answer = await self._door.app.answer(
            route.name, value, priority=self._priority, timeout=self._timeout(), info=info
        )
        output = answer.value
        if is_large(output):
            body, media_type = await asyncio.to_thread(route.codec.encode, output, accept, allow_nan=route.allow_nan)
        else:
            body, media_type = route.codec.encode(output, accept, allow_nan=route.allow_nan)
        timing = (
            f'queue;dur={answer.queued * 1e3:.3f}, run;dur={answer.ran * 1e3:.3f}, batch;desc="{answer.batch_size}"'
        )
        headers = {"X-Request-Id": self.request_id, "Server-Timing": timing}
        if accept is not None and accept != "*/*":
            headers["Vary"] = "Accept"
        return Response(200, body, media_type, headers)

    async def _stream(self, value: Any, info: RequestInfo, wanted: Format) -> Response:
        route = self._route
        chunks: Stream[Any] = self._door.app.stream(
            route.name, value, priority=self._priority, timeout=self._timeout(), info=info
        )
        try:
            # What fails before the first chunk is written still has a status to fail with.
            first = await anext(chunks, END)
            encoded = None if first is END else route.codec.encode_json(first, allow_nan=route.allow_nan)
        except BaseException:
            await chunks.aclose()
            raise
        headers = {"X-Request-Id": self.request_id, "Vary": "Accept", **_STREAMED}
        queued = getattr(chunks, "queued", None)
        if queued is not None:
            headers["Server-Timing"] = f"queue;dur={queued * 1e3:.3f}"
        parts = Parts(parts_of(route.handler, chunks, encoded, wanted, self._ended), chunks.aclose)
        return Response(200, b"", wanted.media_type, headers, parts)

    def _many(self, body: bytes, info: RequestInfo) -> Response:
        app, route = self._door.app, self._route
        media_type = answers_type(self._accept)
        answers = LineAnswers(
            app, route.handler, info, self._line_failed, priority=self._priority, timeout=self._timeout()
        )
        parts = Parts(answers_by_line(body, answers, lambda: app.window(route.name)))
        headers = {"X-Request-Id": self.request_id, "Vary": "Accept", **_STREAMED}
        return Response(200, b"", media_type, headers, parts)

    def _timeout(self) -> float | None:
        return None if self._wait is None else self._wait.seconds

    # ------------------------------------------------------------------ failures

    def _failed(self, error: TidegateError) -> Response:
        headers = {"Retry-After": f"{max(1, round(error.retry_after))}"} if isinstance(error, Refused) else None
        return problem(error.status, self._told(error), error.code, self.request_id, headers)

    def _ended(self, error: TidegateError | None) -> str:
        self._door.tally.took(self._route.name, perf_counter() - self._started)
        return "" if error is None else self._told(error)

    def _line_failed(self, error: TidegateError, line: int) -> str:
        return self._told(error, f", line {line}")

    def _told(self, error: TidegateError, where: str = "") -> str:
        """What the caller reads of an error; the log gets the rest."""
        seconds = perf_counter() - self._started
        facts = _facts(self._request, self.request_id, self._route.name, error.status, error.code, seconds)
        head = f"{self._route.name} failed, request {self.request_id}{where}: {error.status} {error.code} after {seconds:.3f} s"
        if isinstance(error, HandlerError):
            # The text may hold anything of the user's; callers get the id by which the log names it.
            failed(logging.ERROR, "%s: %s\n%s", head, error, error.traceback, **facts)
            return "internal error"
        if error.status >= 500:
            level = logging.WARNING if error.status in (503, 504) else logging.ERROR
            failed(level, "%s: %s", head, error, exc_info=isinstance(error, EncodeError), **facts)
        else:
            # The caller's own doing, whose text may quote what was sent.
            failed(logging.INFO, "%s", head, **facts)
        return error.detail


def refused(refusal: Refusal, handler: str, request: Request, request_id: str, started: float) -> Response:
    """The answer to a request that no handler has seen, and its line in the log."""
    seconds = perf_counter() - started
    facts = _facts(request, request_id, handler, refusal.status, refusal.code, seconds)
    failed(logging.INFO, "request %s refused: %d %s", request_id, refusal.status, refusal.code, **facts)
    return problem(refusal.status, refusal.detail, refusal.code, request_id, refusal.headers)


def _facts(request: Request, request_id: str, handler: str, status: int, code: str, seconds: float) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "handler": handler,
        "status": status,
        "code": code,
        "duration": round(seconds, 6),
        "trace_id": trace_of(request.headers.get("traceparent", "")),
        "client": request.client,
    }


def is_large(output: Any) -> bool:
    """Whether writing an output may take long enough for others to notice."""
    size = getattr(output, "nbytes", None)
    if size is not None:
        return bool(size > LARGE)
    if isinstance(output, (str, bytes, bytearray)):
        return len(output) > LARGE
    if isinstance(output, (list, tuple)):
        return len(output) > LARGE // 16 or any(
            is_large(one) for one in output[:16] if not isinstance(one, (list, dict))
        )
    return isinstance(output, dict) and any(is_large(one) for one in list(output.values())[:16])
