"""What is refused before a body is read: keys, origins, methods, sizes, types."""

import json
from typing import Any

import pytest

from tidegate import App, HTTPError, serve
from tidegate.service import Answer
from tidegate_transports.exchange import Exchange, HTTPOptions, Request, Response

pytestmark = pytest.mark.anyio

KEYS = HTTPOptions(api_keys=["first", "schlüssel"])
SHARED = HTTPOptions(cors_origins=["https://example.org", "http://localhost:3000"])


@serve(max_batch_size=8, forward_headers=["X-Tenant"])
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve
def raw(body: bytes) -> bytes:
    return body


class Answering(App):
    """An app that answers without running anything."""

    async def answer(self, name: str, value: Any, **options: Any) -> Answer:
        return Answer(value, 0.0, 0.0, 1)


def admitted(
    method: str = "POST", path: str = "/double", options: HTTPOptions | None = None, **headers: str
) -> Response | None:
    names = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return Exchange(Answering(double, raw), options).admit(Request(method, path, names))


def code_of(response: Response | None) -> tuple[int, str] | None:
    """A problem's status and code; None for a request that may go on."""
    if response is None:
        return None
    assert response.content_type == "application/problem+json"
    assert response.headers["X-Request-Id"]
    return response.status, json.loads(response.body)["code"]


# ---------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ({}, None),
        ({"Content_Length": "100"}, None),
        ({"Content_Length": "101"}, (413, "body-too-large")),
        ({"Content_Length": "9" * 30}, (413, "body-too-large")),
        ({"Content_Type": "application/json; charset=utf-8"}, None),
        ({"Content_Type": "application/vnd.api+json"}, None),
        ({"Content_Type": "application/x-msgpack"}, None),
        ({"Content_Type": "application/x-ndjson"}, None),
        ({"Content_Type": "text/csv"}, (415, "unsupported-media-type")),
        ({"Content_Type": "application/x-www-form-urlencoded"}, (415, "unsupported-media-type")),
        ({"Content_Type": "application/x-npy"}, (415, "unsupported-media-type")),
        ({"Content_Encoding": "gzip"}, None),
        ({"Content_Encoding": "identity"}, None),
        ({"Content_Encoding": "br"}, (415, "unsupported-content-encoding")),
        ({"Content_Encoding": "gzip, gzip"}, (415, "unsupported-content-encoding")),
    ],
)
async def test_a_body_is_refused_by_its_head_where_nothing_in_it_could_help(
    headers: dict[str, str], refusal: tuple[int, str] | None
) -> None:
    assert code_of(admitted(options=HTTPOptions(max_body=100), **headers)) == refusal


async def test_a_handler_of_bytes_takes_every_type() -> None:
    assert admitted(path="/raw", Content_Type="text/csv") is None
    assert admitted(path="/raw", Content_Type="application/x-ndjson") is None


async def test_curls_default_type_is_told_of_the_flag_that_helps() -> None:
    response = admitted(Content_Type="application/x-www-form-urlencoded")
    assert response is not None
    assert "--json" in json.loads(response.body)["detail"]


async def test_an_unknown_coding_is_told_which_there_are() -> None:
    response = admitted(Content_Encoding="zstd")
    assert response is not None
    assert response.headers["Accept-Encoding"] == "gzip, deflate"


async def test_a_body_that_came_without_a_length_is_measured_too() -> None:
    exchange = Exchange(Answering(double), HTTPOptions(max_body=10))
    assert (await exchange.respond(Request("POST", "/double", {}, b" " * 9 + b"1"))).status == 200
    assert code_of(await exchange.respond(Request("POST", "/double", {}, b" " * 10 + b"1"))) == (413, "body-too-large")


async def test_what_a_shell_could_not_read_is_told_like_any_other_problem() -> None:
    exchange = Exchange(Answering(double), SHARED)
    head = Request("POST", "/double", {"x-request-id": "seven", "origin": "https://example.org"})
    response = exchange.refuse(head, 408, "request-timeout", "the body did not come", {"Retry-After": "1"})
    assert code_of(response) == (408, "request-timeout")
    assert response.headers["X-Request-Id"] == "seven"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Access-Control-Allow-Origin"] == "https://example.org"


# ---------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ({}, (401, "unauthorized")),
        ({"X_API_Key": "wrong"}, (401, "unauthorized")),
        ({"X_API_Key": ""}, (401, "unauthorized")),
        ({"X_API_Key": "first "}, (401, "unauthorized")),
        ({"Authorization": "Basic first"}, (401, "unauthorized")),
        ({"Authorization": "first"}, (401, "unauthorized")),
        ({"X_API_Key": "first"}, None),
        ({"Authorization": "Bearer first"}, None),
        ({"Authorization": "bearer   first"}, None),
        ({"X_API_Key": "schlüssel"}, None),
        ({"X_API_Key": "wrong", "Authorization": "Bearer schlüssel"}, None),
        # As servers hand on what they read as Latin-1, or could not read as UTF-8.
        ({"X_API_Key": "schlüssel".encode().decode("latin-1")}, None),
        ({"X_API_Key": "schl\udcfcssel"}, (401, "unauthorized")),
        ({"X_API_Key": "\ud800\udc80"}, (401, "unauthorized")),
        ({"X_API_Key": "x" * 100_000}, (401, "unauthorized")),
    ],
)
async def test_a_handler_opens_to_any_of_the_keys_and_to_no_other(
    headers: dict[str, str], refusal: tuple[int, str] | None
) -> None:
    assert code_of(admitted(options=KEYS, **headers)) == refusal


@pytest.mark.parametrize("path", ["/info", "/metrics", "/docs", "/openapi.json", "/nowhere", "/double"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
async def test_without_a_key_nobody_learns_what_there_is(path: str, method: str) -> None:
    response = admitted(method, path, KEYS)
    assert code_of(response) == (401, "unauthorized")
    assert response is not None
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="tidegate"'
    assert "double" not in response.body.decode()


@pytest.mark.parametrize("path", ["/health", "/healthz", "/livez", "/readyz"])
async def test_probes_need_no_key(path: str) -> None:
    async with App(double) as app:
        response = await Exchange(app, KEYS).respond(Request("GET", path, {}))
    assert response.status == 200


async def test_a_key_that_is_wrong_is_told_apart_from_one_that_is_missing_and_is_not_repeated() -> None:
    response = admitted(options=KEYS, X_API_Key="geheim")
    assert response is not None
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="tidegate", error="invalid_token"'
    assert "geheim" not in response.body.decode()


async def test_a_browser_without_a_key_gets_the_page_that_asks_for_it_and_still_a_401() -> None:
    response = admitted("GET", "/docs", KEYS, Accept="text/html,*/*;q=0.8")
    assert response is not None
    assert (response.status, response.content_type) == (401, "text/html; charset=utf-8")
    assert b"API key" in response.body
    assert b"double" not in response.body
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_respond_asks_for_the_key_too() -> None:
    exchange = Exchange(Answering(double), KEYS)
    assert (await exchange.respond(Request("POST", "/double", {}, b"1"))).status == 401
    assert (await exchange.respond(Request("POST", "/double", {"x-api-key": "first"}, b"1"))).status == 200


# ---------------------------------------------------------------------- web pages


async def test_a_page_of_a_listed_origin_is_told_that_it_may_call_and_what_it_may_read() -> None:
    response = admitted("OPTIONS", options=SHARED, Origin="http://localhost:3000", Access_Control_Request_Method="POST")
    assert response is not None
    assert (response.status, response.body) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert response.headers["Access-Control-Allow-Methods"] == "OPTIONS, POST"
    assert {"Content-Type", "X-API-Key", "Priority", "x-tenant"} <= set(
        response.headers["Access-Control-Allow-Headers"].split(", ")
    )
    assert response.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in response.headers


async def test_a_preflight_carries_no_key_and_needs_none() -> None:
    both = HTTPOptions(api_keys=["k"], cors_origins=["https://example.org"])
    asked = {"Origin": "https://example.org", "Access_Control_Request_Method": "POST"}
    for path in ("/double", "/nowhere"):
        response = admitted("OPTIONS", path, both, **asked)
        assert response is not None
        assert response.status == 204
    refused = admitted("POST", "/double", both, Origin="https://example.org")
    assert refused is not None
    # The page is to see why.
    assert refused.headers["Access-Control-Allow-Origin"] == "https://example.org"


async def test_a_page_of_another_origin_is_told_no() -> None:
    evil = {"Origin": "https://evil.example", "Access_Control_Request_Method": "POST"}
    refused = admitted("OPTIONS", "/double", SHARED, **evil)
    assert code_of(refused) == (403, "origin-not-allowed")
    assert refused is not None
    assert "Access-Control-Allow-Origin" not in refused.headers
    assert refused.headers["Vary"] == "Origin"
    without_list = admitted("OPTIONS", "/double", None, **evil)
    assert without_list is not None
    assert "Access-Control-Allow-Origin" not in without_list.headers


async def test_every_answer_to_a_listed_page_can_be_read_by_it() -> None:
    exchange = Exchange(Answering(double), SHARED)
    for request in (
        Request("POST", "/double", {"origin": "https://example.org", "accept": "application/json"}, b"1"),
        Request("POST", "/double", {"origin": "https://example.org"}, b"["),
        Request("GET", "/livez", {"origin": "https://example.org"}),
        Request("GET", "/nowhere", {"origin": "https://example.org"}),
    ):
        response = await exchange.respond(request)
        assert response.headers["Access-Control-Allow-Origin"] == "https://example.org"
        assert "Origin" in response.headers["Vary"].split(", ")
        assert "X-Request-Id" in response.headers["Access-Control-Expose-Headers"]


async def test_where_any_page_may_call_the_answer_depends_on_none() -> None:
    exchange = Exchange(Answering(double), HTTPOptions(cors_origins=["*"]))
    response = await exchange.respond(Request("POST", "/double", {"origin": "https://any.example"}, b"1"))
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "Vary" not in response.headers


async def test_a_handlers_own_refusal_of_401_is_its_own_affair() -> None:
    class Refusing(App):
        async def answer(self, name: str, value: Any, **options: Any) -> Answer:
            raise HTTPError(401, "not you")

    response = await Exchange(Refusing(double)).respond(Request("POST", "/double", {}, b"1"))
    assert code_of(response) == (401, "handler-refused")
