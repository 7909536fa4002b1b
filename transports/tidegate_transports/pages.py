"""What the door answers itself: probes, `/info`, `/metrics`, `/openapi.json` and `/docs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tidegate import App
from tidegate.status import Overview
from tidegate_transports.client_script import client_script
from tidegate_transports.docs_page import docs_page
from tidegate_transports.guards import PAGE_HEADERS
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.messages import Request, Response
from tidegate_transports.metrics import Metrics
from tidegate_transports.openapi import document
from tidegate_transports.service_info import health, info, liveness, readiness

__all__ = ["OPEN", "PROBES", "Pages"]

PROBES = frozenset({"/health", "/healthz", "/livez", "/readyz"})
"""Paths of orchestrators and load balancers."""

OPEN = PROBES | {"/client.js"}
"""Paths that need no key: who asks there has none, and they tell nothing that is worth one."""

_UNCACHED = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Pages:
    """One app's pages; every one of them is made from a snapshot, or is always the same."""

    def __init__(self, app: App, options: HTTPOptions) -> None:
        self._app = app
        self._options = options
        self._metrics = Metrics()
        self._documents: dict[str, bytes] = {}
        handlers = app.handlers
        self._of_overview: dict[str, Callable[[Overview, Request], Response]] = {
            "/health": lambda overview, _: _as_json(*health(handlers, overview)),
            "/healthz": lambda overview, _: _as_json(*health(handlers, overview)),
            "/livez": lambda overview, _: _as_json(*liveness(overview)),
            "/readyz": lambda overview, _: _as_json(*readiness(handlers, overview)),
            "/info": lambda overview, _: _as_json(200, info(handlers, overview)),
        }
        self._fixed: dict[str, Callable[[Request], Response]] = {"/openapi.json": self._openapi, "/client.js": _script}
        if options.docs:
            self._fixed["/docs"] = lambda _: self.docs(200)
        if options.metrics:
            self._of_overview["/metrics"] = self._written_metrics
        self.paths = (*self._of_overview, *self._fixed)

    async def page(self, request: Request) -> Response:
        """The page at one of `paths`."""
        fixed = self._fixed.get(request.path)
        if fixed is not None:
            return fixed(request)
        return self._of_overview[request.path](await self._app.overview(), request)

    def docs(self, status: int) -> Response:
        """The page for people; it holds nothing that is secret, and asks for a key when it needs one."""
        body, policy = docs_page()
        headers = {**PAGE_HEADERS, "Content-Security-Policy": policy}
        return Response(status, body, "text/html; charset=utf-8", headers)

    def _openapi(self, request: Request) -> Response:
        body = self._documents.get(request.root)
        if body is None:
            body = _json(document(self._app, self._options, request.root))
            # A front end may call it by any root, and one is the usual number.
            if len(self._documents) < 8:
                self._documents[request.root] = body
        return Response(200, body, headers=dict(_UNCACHED))

    def _written_metrics(self, overview: Overview, request: Request) -> Response:
        body, content_type = self._metrics.write(overview, request.headers.get("accept"))
        return Response(200, body, content_type, {**_UNCACHED, "Vary": "Accept"})


def _script(_: Request) -> Response:
    return Response(200, client_script(), "text/javascript; charset=utf-8", {"X-Content-Type-Options": "nosniff"})


def _as_json(status: int, found: Mapping[str, Any]) -> Response:
    return Response(status, _json(found), headers=dict(_UNCACHED))


def _json(found: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(found, enc_hook=repr)
