"""The OpenAPI document: valid, complete, and true of the service that it describes."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tidegate import App, Array, HTTPError, serve
from tidegate_transports.exchange import Exchange, HTTPOptions, Request
from tidegate_transports.http import HTTPTransport
from tidegate_transports.openapi import document

pytestmark = pytest.mark.anyio

KEYS = HTTPOptions(api_keys=["geheim"])


class Point(msgspec.Struct):
    """A point, and perhaps another."""

    x: int
    next: "Point | None" = None


class Cat(msgspec.Struct, tag=True):
    lives: int = 9


class Dog(msgspec.Struct, tag=True):
    name: str


class Home(msgspec.Struct):
    animal: Cat | Dog
    default: dict[str, Point] = {}


class Label(msgspec.Struct):
    name: str
    score: float


@serve(max_batch_size=8, worker="thread")
def square(x: Annotated[np.ndarray, Array("float64", (2,))]) -> np.ndarray:
    """Squares, or nearly.

    Of two numbers at a time.
    """
    # A real square of what fits in may not fit out.
    return np.asarray(np.tanh(x) ** 2)


@serve(max_batch_size=4, worker="thread")
def classify(points: list[Point]) -> list[Label]:
    return [Label("point", 0.5) for _ in points]


@serve(worker="thread")
def adopt(home: Home) -> Cat | Dog:
    return home.animal


@serve(worker="thread")
def raw(body: bytes) -> bytes:
    return body


@serve(worker="thread")
def letters(text: str) -> Iterator[str]:
    if text == "no":
        raise HTTPError(409, "no")
    yield from text[:10]


@serve(path="/some/where", allow_nan=True, worker="thread")
def anything(x):  # type: ignore[no-untyped-def]
    return x


@serve(worker="thread")
def count(words: dict[str, list[int] | str]) -> dict[str, int]:
    return {name: len(value) for name, value in words.items()}


HANDLERS = (square, classify, adopt, raw, letters, anything, count)


def of(options: HTTPOptions | None = None, root: str = "") -> dict[str, Any]:
    # As it is sent: only what JSON can hold is left.
    found: dict[str, Any] = json.loads(json.dumps(document(App(*HANDLERS), options or HTTPOptions(), root)))
    return found


@pytest.mark.parametrize("options", [HTTPOptions(), KEYS, HTTPOptions(metrics=False, docs=False)])
def test_the_document_is_valid_openapi(options: HTTPOptions) -> None:
    assert list(OpenAPIV31SpecValidator(of(options)).iter_errors()) == []


def test_every_reference_leads_somewhere() -> None:
    found = of(KEYS)
    text = json.dumps(found)
    references = {part.split('"')[0] for part in text.split('"$ref": "')[1:]} | set(
        found["components"]["schemas"]["adopt.input.Home"]["properties"]["animal"]["discriminator"]["mapping"].values()
    )
    assert len(references) > 20
    for reference in references:
        place: Any = found
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    assert "$defs" not in text


def test_a_handler_is_told_with_what_it_takes_and_gives() -> None:
    found = of()
    operation = found["paths"]["/square"]["post"]
    assert (operation["operationId"], operation["summary"]) == ("square", "Squares, or nearly.")
    assert operation["description"] == "Of two numbers at a time."
    taken = operation["requestBody"]["content"]
    assert list(taken) == [
        "application/json",
        "application/msgpack",
        "application/x-npy",
        "application/octet-stream",
        "application/x-ndjson",
    ]
    assert taken["application/json"]["example"] == [0.0, 0.0]
    assert found["components"]["schemas"]["classify.output"] == {"$ref": "#/components/schemas/classify.output.Label"}
    assert found["paths"]["/some/where"]["post"]["operationId"] == "anything"
    assert set(found["paths"]["/raw"]["post"]["requestBody"]["content"]) == {"application/octet-stream", "*/*"}
    assert next(iter(found["paths"]["/raw"]["post"]["responses"]["200"]["content"])) == "application/octet-stream"
    stream = found["paths"]["/letters"]["post"]["responses"]["200"]["content"]
    assert set(stream) == {"application/x-ndjson", "text/event-stream"}
    assert stream["application/x-ndjson"]["x-chunk"] == {"$ref": "#/components/schemas/letters.output"}


def test_two_classes_of_one_name_are_kept_apart() -> None:
    def other() -> Any:
        class Point(msgspec.Struct):
            y: str

        @serve(worker="thread")
        def second(p: Point) -> Point:
            return p

        return second

    found = document(App(classify, other()), HTTPOptions())["components"]["schemas"]
    assert set(found["classify.input.Point"]["properties"]) == {"x", "next"}
    assert set(found["second.input.Point"]["properties"]) == {"y"}


def test_data_that_looks_like_a_reference_stays_data() -> None:
    class Odd(msgspec.Struct):
        link: Annotated[dict[str, str], msgspec.Meta(examples=[{"$ref": "#/$defs/Point"}])]

    @serve(worker="thread")
    def odd(x: Odd) -> None: ...

    found = document(App(odd), HTTPOptions())["components"]["schemas"]["odd.input.Odd"]
    assert found["properties"]["link"]["examples"] == [{"$ref": "#/$defs/Point"}]


def test_keys_are_told_where_there_are_any() -> None:
    assert "security" not in of()
    assert "401" not in of()["paths"]["/square"]["post"]["responses"]
    found = of(KEYS)
    assert found["security"] == [{"key": []}, {"bearer": []}]
    assert "401" in found["paths"]["/square"]["post"]["responses"]
    for path in ("/livez", "/readyz", "/health", "/healthz"):
        assert found["paths"][path]["get"]["security"] == []
    assert "geheim" not in json.dumps(found)


async def test_where_the_app_is_mounted_is_told() -> None:
    assert "servers" not in of()
    exchange = Exchange(App(*HANDLERS))
    for root in ("/models", ""):
        response = await exchange.respond(Request("GET", "/openapi.json", {}, root=root))
        assert json.loads(response.body) == of(root=root)
    assert of(root="/models")["servers"] == [{"url": "/models"}]


CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth"
)


@pytest.mark.parametrize("options", [HTTPOptions(), KEYS], ids=["open", "with keys"])
async def test_whatever_is_sent_is_answered_as_documented(options: HTTPOptions, tmp_path: Path) -> None:
    written = of(options)
    for operations in written["paths"].values():
        for operation in operations.values():
            # It would cover any status at all.
            operation["responses"].pop("default", None)
    written["paths"]["/letters"]["post"]["responses"]["409"] = {"$ref": "#/components/responses/Refused"}
    (tmp_path / "openapi.json").write_text(json.dumps(written))
    door = HTTPTransport("127.0.0.1:0", options)
    async with App(*HANDLERS, http=door):
        arguments = ["run", "openapi.json", "--url", door.url, "--checks", CHECKS, "--max-examples", "25"]
        arguments += ["--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all", "--seed", "1"]
        arguments += ["-H", "X-API-Key: geheim"] if options.api_keys else []
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("schemathesis")),
            *arguments,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    assert "No issues found" in told.decode()
