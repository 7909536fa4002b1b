"""What an HTTP request means and what is answered: bytes in, bytes out, no socket.

The shells (`http` on aiohttp, `asgi`) move the bytes; everything about paths, methods, bodies, keys and errors is
decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from tidegate import App, TidegateError
from tidegate.media import JSON
from tidegate.status import DoorCounts
from tidegate_transports.calls import Call, Door, Route, refused
from tidegate_transports.codings import WORTHWHILE, check_coding, compress, wanted_coding
from tidegate_transports.guards import Keys, Origins
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.item_lines import holds_lines
from tidegate_transports.messages import Parts, Request, Response
from tidegate_transports.metrics import Tally
from tidegate_transports.pages import OPEN, Pages
from tidegate_transports.preferences import repeated
from tidegate_transports.problems import Refusal, problem, request_id_of

__all__ = ["Exchange", "HTTPOptions", "Parts", "Request", "Response", "problem", "request_id_of"]

_MAX_SHOWN = 20
_READ = ("GET", "HEAD")


class Exchange:
    """One app's HTTP side.

    A shell gives the head of each request to `admit` and sends what comes of it; where that is None it reads the body
    and sends what `respond` gives. What goes wrong while it reads is told by `refuse`.
    """

    def __init__(self, app: App, options: HTTPOptions | None = None) -> None:
        self.options = options = options or HTTPOptions()
        self.keys = Keys(options.api_keys)
        handlers = app.handlers.values()
        self.origins = Origins(options.cors_origins, (name for one in handlers for name in one.options.forward_headers))
        self._tally = Tally()
        app.counters.append(self._counted)
        self._door = Door(app, options, self._tally)
        self._pages = Pages(app, options)
        self._routes = {handler.options.path: Route.to(handler) for handler in handlers}
        if len(app.handlers) == 1:
            self._routes["/predict"] = next(iter(self._routes.values()))
        self._is_guarded = bool(self.keys or self.origins)

    def admit(self, head: Request) -> Response | None:
        """What can be answered before the body is read, or None; `respond` does the same, so asking here is optional."""
        route = self._routes.get(head.path)
        try:
            if self._is_guarded and (response := self._guarded(head)):
                return self._finished(head, "", response)
            if route is None:
                answer = self._no_page(head)
                return None if answer is None else self._finished(head, head.path[1:], answer)
            if head.method != "POST":
                return self._finished(head, route.name, self._no_post(head))
            self._check_body(route, head.headers)
        except Refusal as refusal:
            return self._refused(head, "" if route is None else route.name, refusal)
        except TidegateError as error:
            told = Refusal(error.status, error.code, error.detail)
            return self._refused(head, "" if route is None else route.name, told)
        return None

    def refuse(
        self, head: Request, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> Response:
        """The answer to a request that could not be read: 413, 408, or 400 for a body that is not as it says."""
        route = self._routes.get(head.path)
        return self._refused(head, "" if route is None else route.name, Refusal(status, code, detail, headers))

    async def respond(self, request: Request) -> Response:
        """Answer one request; every failure becomes a problem document, none escapes."""
        response = self.admit(request)
        if response is not None:
            return response
        if len(request.body) > self.options.max_body:
            return self.refuse(request, *self._too_large())
        route = self._routes.get(request.path)
        if route is None:
            return self._finished(request, request.path[1:], await self._page(request))
        response = await Call(self._door, route, request).response()
        if self.origins:
            self._share(request, response)
        return response

    # ------------------------------------------------------------------ before the body

    def _guarded(self, head: Request) -> Response | None:
        headers = head.headers
        if head.method == "OPTIONS" and self.origins and "origin" in headers:
            asked = headers.get("access-control-request-method")
            if asked is not None:
                return self._preflight(head)
        if head.path in OPEN or self.keys.admit(headers):
            return None
        error = ', error="invalid_token"' if "authorization" in headers or "x-api-key" in headers else ""
        challenge = {"WWW-Authenticate": f'Bearer realm="tidegate"{error}'}
        if head.path == "/docs" and self.options.docs and "text/html" in headers.get("accept", ""):
            # A browser cannot send a key with what is typed into its address bar; the page asks for it.
            page = self._pages.docs(401)
            page.headers |= challenge
            return page
        what = "is not known" if error else "is missing"
        detail = f"the API key {what}: send one in X-API-Key, or as Authorization: Bearer"
        raise Refusal(401, "unauthorized", detail, challenge)

    def _preflight(self, head: Request) -> Response:
        origin = head.headers["origin"]
        if not self.origins.allow(origin):
            raise Refusal(403, "origin-not-allowed", "web pages of this origin may not call; add it to cors_origins")
        methods = "GET, HEAD, OPTIONS" if head.path in self._pages.paths else "OPTIONS, POST"
        return Response(204, b"", "", self.origins.preflight(methods))

    def _no_post(self, head: Request) -> Response:
        if head.method == "OPTIONS":
            return Response(204, b"", "", {"Allow": "OPTIONS, POST"})
        raise Refusal(405, "method-not-allowed", f"{head.path} answers POST", {"Allow": "POST"})

    def _no_page(self, head: Request) -> Response | None:
        """What is answered in a page's place; None where there is one to be read."""
        if head.path not in self._pages.paths:
            raise Refusal(404, "not-found", self._what_there_is(head.path))
        if head.method == "OPTIONS":
            return Response(204, b"", "", {"Allow": "GET, HEAD, OPTIONS"})
        if head.method not in _READ:
            raise Refusal(405, "method-not-allowed", f"{head.path} answers GET", {"Allow": "GET, HEAD"})
        return None

    async def _page(self, request: Request) -> Response:
        response = await self._pages.page(request)
        if len(response.body) >= WORTHWHILE and self.options.gzip and wanted_coding(response, request.headers):
            compress(response)
        return response

    async def _counted(self) -> DoorCounts:
        return self._tally.counts()

    def _what_there_is(self, path: str) -> str:
        posts = [f"POST {path}" for path in self._routes]
        more = [f"{len(posts) - _MAX_SHOWN} more"] if len(posts) > _MAX_SHOWN else []
        gets = [f"GET {path}" for path in self._pages.paths]
        return f"nothing is at {path[:200]}; there is {', '.join(posts[:_MAX_SHOWN] + more + gets)}"

    def _check_body(self, route: Route, headers: Mapping[str, str]) -> None:
        """Raise Refusal or UnsupportedMediaType for a body that would be refused whatever it holds."""
        length = headers.get("content-length")
        if length is not None and length.isdecimal() and int(length[:20]) > self.options.max_body:
            raise Refusal(*self._too_large())
        content_type = headers.get("content-type")
        if content_type is not None and content_type != JSON and not holds_lines(route.handler, content_type):
            route.codec.check_content_type(content_type)
        if "content-encoding" in headers:
            check_coding(repeated(headers, "content-encoding"))

    def _too_large(self) -> tuple[int, str, str]:
        return 413, "body-too-large", f"the body is over {self.options.max_body} bytes"

    # ------------------------------------------------------------------ what every answer has

    def _refused(self, head: Request, handler: str, refusal: Refusal) -> Response:
        request_id = request_id_of(head.headers)
        return self._finished(head, handler, refused(refusal, handler, head, request_id, perf_counter()))

    def _finished(self, head: Request, handler: str, response: Response) -> Response:
        if "X-Request-Id" not in response.headers:
            response.headers["X-Request-Id"] = request_id_of(head.headers)
        self._tally.answered(handler, response.status)
        if self.origins:
            self._share(head, response)
        return response

    def _share(self, head: Request, response: Response) -> None:
        """Tell the browser which pages may read the answer."""
        told = self.origins.headers(head.headers)
        if "Vary" in told and "Vary" in response.headers:
            told["Vary"] = f"{response.headers['Vary']}, {told['Vary']}"
        response.headers |= told
