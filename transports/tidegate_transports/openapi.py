"""The OpenAPI 3.1 document of an app's handlers and of what the door answers itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from tidegate import App, Handler, __version__
from tidegate.media import FORM, JSON, MSGPACK, MULTIPART, NPY, OCTETS
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.outputs import output_of, output_schema
from tidegate_transports.problems import PROBLEM
from tidegate_transports.streams import EVENTS, LINES

__all__ = ["document"]

_COMPONENTS = "#/components/"
# What stands under these is data, in which "$ref" is a key like any other.
_DATA = frozenset({"const", "default", "enum", "example", "examples"})

_PROBLEMS = {
    400: ("Malformed", "The body cannot be parsed; `detail` says where and why."),
    401: ("Unauthorized", "The request has no API key, or one that is not known."),
    406: ("NotAcceptable", "`Accept` matches none of the forms that the answer has."),
    408: ("TooSlow", "The body did not come in time."),
    413: ("TooLarge", "The body is larger than the service takes."),
    415: ("UnsupportedMediaType", "`Content-Type` or `Content-Encoding` is one that the handler does not take."),
    422: ("InvalidInput", "The input is not what the handler takes; `detail` says where and why."),
    429: ("Overloaded", "The queue is full: try again after `Retry-After`."),
    500: ("Failed", "The handler failed; the log names the request's id."),
    503: ("Unavailable", "The service is shutting down or has no live worker: try again after `Retry-After`."),
    504: ("DeadlineExceeded", "There was no answer within the request's timeout."),
}
_REFUSED = ("Refused", "The handler's own verdict.")

_HEADERS = {
    "RequestId": (
        "X-Request-Id",
        "Comes back with the answer and stands in the log; up to 128 safe characters.",
        "7f3a",
    ),
    "Priority": ("Priority", "`u=0` (first) to `u=7`; 3 where nothing is said (RFC 9218).", "u=5"),
    "Prefer": ("Prefer", "`wait=SECONDS` lowers the request's timeout (RFC 7240).", "wait=2.5"),
    "Trace": (
        "traceparent",
        "The trace that the request belongs to (W3C Trace Context).",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
}
_SHOWN = {
    "X-Request-Id": ("RequestId", "string", "The request's id."),
    "Server-Timing": ("ServerTiming", "string", "Milliseconds queued and run, and the size of the batch."),
    "Preference-Applied": ("PreferenceApplied", "string", "What of `Prefer` was heard."),
    "Retry-After": ("RetryAfter", "integer", "Seconds after which to try again."),
}

_PROBE = {
    "/livez": ("Whether nothing but a new process can help", "the service lives", True),
    "/readyz": ("Whether every handler has a ready worker", "ready for requests", True),
    "/healthz": ("The same as /readyz", "ready for requests", True),
    "/health": ("The same as /readyz", "ready for requests", True),
    "/info": ("Version, handlers, schemas, workers, statistics", "what is served", False),
}


def document(app: App, options: HTTPOptions, root: str = "") -> dict[str, Any]:
    """The document; `root` is the path under which the app is mounted."""
    schemas: dict[str, Any] = {"Problem": _problem_schema()}
    paths = {handler.options.path: {"post": _operation(handler, options, schemas)} for handler in app.handlers.values()}
    names = ", ".join(app.handlers)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"tidegate: {names}", "version": __version__},
        "paths": {**paths, **_built_in(options)},
        "components": {
            "schemas": schemas,
            "responses": {name: _problem_response(status) for status, (name, _) in _PROBLEMS.items()}
            | {_REFUSED[0]: _problem_response(None)},
            "headers": {name: {"description": text, "schema": {"type": kind}} for name, kind, text in _SHOWN.values()},
            "parameters": {
                key: {
                    "name": name,
                    "in": "header",
                    "description": text,
                    "schema": {"type": "string"},
                    "example": example,
                }
                for key, (name, text, example) in _HEADERS.items()
            },
        },
    }
    if root:
        found["servers"] = [{"url": root}]
    if options.api_keys:
        found["components"]["securitySchemes"] = {
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }
        found["security"] = [{"key": []}, {"bearer": []}]
    return found


# ---------------------------------------------------------------------- handlers


def _operation(handler: Handler[..., Any], options: HTTPOptions, schemas: dict[str, Any]) -> dict[str, Any]:
    name = handler.name
    target = handler.target
    text = inspect.cleandoc(target.__doc__ or "") if isinstance(target.__doc__, str) else ""
    summary, _, rest = text.partition("\n")
    statuses = [status for status in _PROBLEMS if status != 401 or options.api_keys]
    timing = ("X-Request-Id", "Server-Timing", "Preference-Applied")
    return {
        "operationId": name,
        "summary": summary or name,
        **({"description": rest.strip()} if rest.strip() else {}),
        "tags": ["handlers"],
        "parameters": [{"$ref": f"{_COMPONENTS}parameters/{key}"} for key in _HEADERS],
        "requestBody": {"required": not _is_raw(handler), "content": _inputs(handler, schemas)},
        "responses": {
            "200": {
                "description": "The stream's chunks" if handler.streams else "The output",
                "headers": _headers(timing),
                "content": _outputs(handler, schemas),
            },
            **{str(status): {"$ref": f"{_COMPONENTS}responses/{_PROBLEMS[status][0]}"} for status in statuses},
            "default": {"$ref": f"{_COMPONENTS}responses/{_REFUSED[0]}"},
        },
    }


def _is_raw(handler: Handler[..., Any]) -> bool:
    """Whether it takes a body's bytes, whatever they are, and none at all is as good."""
    return handler.codec.content_types[-1] == "*/*"


def _inputs(handler: Handler[..., Any], schemas: dict[str, Any]) -> dict[str, Any]:
    codec = handler.codec
    content: dict[str, Any] = {}
    if _is_raw(handler):
        # Whatever it is called, the handler gets the bytes.
        return {OCTETS: {}, "*/*": {}}
    schema = _component(f"{handler.name}.input", codec.input_schema(), schemas)
    example = codec.example()
    for media in codec.content_types:
        content[media] = {"schema": schema} if media in (JSON, MULTIPART, FORM) else {}
        if media == JSON and example is not None:
            content[media]["example"] = example
    content[LINES] = _text("One item per line, each as in application/json; as many lines come back, in their order.")
    return content


def _outputs(handler: Handler[..., Any], schemas: dict[str, Any]) -> dict[str, Any]:
    schema = _component(f"{handler.name}.output", output_schema(handler), schemas)
    if handler.streams:
        lines = 'Lines of `{"chunk": …}`, then one of `{"end": true}` or of `{"error": {"code", "status", "message"}}`.'
        events = "A `data:` event per chunk, then `event: end` or `event: error`."
        # In 3.1 nothing describes the items of a sequence: the chunk's schema is there for people and generators.
        return {LINES: {**_text(lines), "x-chunk": schema}, EVENTS: {**_text(events), "x-chunk": schema}}
    content = {JSON: {"schema": schema}, MSGPACK: {}, NPY: {}, OCTETS: {}}
    if output_of(handler) is bytes:
        content = {OCTETS: {}, JSON: {"schema": schema}, MSGPACK: {}}
    lines = 'For a body of many items: an output per line, or `{"error": {"code", "message", "line"}}` in its place.'
    return {**content, LINES: _text(lines)}


def _text(description: str) -> dict[str, Any]:
    return {"schema": {"type": "string", "description": description}}


def _component(name: str, schema: Mapping[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to the schema, which is put among the components together with all that it names."""
    definitions = schema.get("$defs", {})
    renamed = {inner: f"{name}.{inner}" for inner in definitions}
    for inner, found in definitions.items():
        schemas[renamed[inner]] = _with_references(found, renamed)
    schemas[name] = _with_references({key: part for key, part in schema.items() if key != "$defs"}, renamed)
    return {"$ref": f"{_COMPONENTS}schemas/{name}"}


def _with_references(schema: Any, renamed: Mapping[str, str]) -> Any:
    if isinstance(schema, list):
        return [_with_references(one, renamed) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, part in schema.items():
        if key == "$ref" and isinstance(part, str):
            part = f"{_COMPONENTS}schemas/{renamed[part.rpartition('/')[2]]}"
        elif key == "properties":
            # Names of fields, whatever they are.
            part = {name: _with_references(one, renamed) for name, one in part.items()}
        elif key == "discriminator" and "mapping" in part:
            mapping = {
                tag: _COMPONENTS + "schemas/" + renamed[to.rpartition("/")[2]] for tag, to in part["mapping"].items()
            }
            part = {**part, "mapping": mapping}
        elif key not in _DATA:
            part = _with_references(part, renamed)
        found[key] = part
    return found


# ---------------------------------------------------------------------- what all have in common


def _built_in(options: HTTPOptions) -> dict[str, Any]:
    paths = {}
    for path, (summary, meaning, is_open) in _PROBE.items():
        found = _get(path, summary, {JSON: {"schema": {"type": "object"}}}, meaning, options, is_open=is_open)
        if is_open:
            content = {JSON: {"schema": {"type": "object"}}}
            found["responses"]["503"] = {"description": "It is not so.", "content": content}
        paths[path] = {"get": found}
    if options.metrics:
        content = {"text/plain": _text("Prometheus' format"), "application/openmetrics-text": _text("OpenMetrics")}
        paths["/metrics"] = {"get": _get("/metrics", "Metrics for Prometheus", content, "the metrics", options)}
    if options.docs:
        page = {"text/html": _text("A page for people")}
        paths["/docs"] = {"get": _get("/docs", "A page to try the handlers on", page, "the page", options)}
        if options.api_keys:
            paths["/docs"]["get"]["responses"]["401"] = {
                "description": "The page, which asks for the key.",
                "content": {**page, PROBLEM: {"schema": {"$ref": f"{_COMPONENTS}schemas/Problem"}}},
            }
    content = {JSON: {"schema": {"type": "object"}}}
    paths["/openapi.json"] = {"get": _get("/openapi.json", "This document", content, "the document", options)}
    return paths


def _get(
    path: str, summary: str, content: Mapping[str, Any], meaning: str, options: HTTPOptions, *, is_open: bool = False
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": f"get.{path.strip('/').replace('.', '-')}",
        "summary": summary,
        "tags": ["service"],
        "responses": {
            "200": {"description": meaning.capitalize(), "headers": _headers(["X-Request-Id"]), "content": content}
        },
    }
    if is_open and options.api_keys:
        found["security"] = []
    elif options.api_keys:
        found["responses"]["401"] = {"$ref": f"{_COMPONENTS}responses/{_PROBLEMS[401][0]}"}
    return found


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"{_COMPONENTS}headers/{_SHOWN[name][0]}"} for name in names}


def _problem_response(status: int | None) -> dict[str, Any]:
    retry = ("Retry-After",) if status in (429, 503) else ()
    return {
        "description": _REFUSED[1] if status is None else _PROBLEMS[status][1],
        "headers": _headers(("X-Request-Id", *retry)),
        "content": {PROBLEM: {"schema": {"$ref": f"{_COMPONENTS}schemas/Problem"}}},
    }


def _problem_schema() -> dict[str, Any]:
    texts = {
        "type": "Always about:blank: `code` says what it is.",
        "title": "The status in words.",
        "detail": "What is wrong, and where.",
        "code": "What is wrong, for programs.",
        "request_id": "By which the log names the request.",
    }
    properties: dict[str, Any] = {name: {"type": "string", "description": text} for name, text in texts.items()}
    properties["status"] = {"type": "integer", "minimum": 400, "maximum": 599}
    return {"type": "object", "description": "RFC 9457", "properties": properties, "required": sorted(properties)}
