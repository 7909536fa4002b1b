import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tidegate import App, Handler, serve
from tidegate.options import HOOKS, RESERVED, Options


def batched(x: list[int]) -> list[int]:
    return x


def one(x: int) -> int:
    return x


def two(x: list[int], y: list[int]) -> list[int]:
    return x


async def asynchronous(x: int) -> int:
    return x


async def asynchronous_batch(x: list[int]) -> list[int]:
    return x


def chunks(x: int) -> Iterator[int]:
    yield x


async def asynchronous_chunks(x: int) -> AsyncIterator[int]:
    yield x


def no_parameter() -> int:
    return 1


def three(a: int, b: int, c: int) -> int:
    return a


def yields(x: Any) -> Iterator[Any]:
    yield x


async def yields_later(x: Any) -> AsyncIterator[Any]:
    yield x


async def coroutine(x: Any) -> Any:
    return x


def with_state(state: Any, x: Any) -> Any:
    return x


# ---------------------------------------------------------------------- one argument that is wrong

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"path": 5}, ValueError, "'/segment'"),
    ({"devices": "gpu"}, ValueError, "'cuda'"),
    ({"path": "relative"}, ValueError, "'/segment'"),
    ({"path": "/"}, ValueError, "'/segment'"),
    ({"path": "/a b"}, ValueError, "'/segment'"),
    ({"path": "/a//b"}, ValueError, "'/segment'"),
    ({"path": "/a/"}, ValueError, "'/segment'"),
    ({"path": "/a?b"}, ValueError, "'/segment'"),
    *(({hook: 5}, TypeError, "give a callable") for hook in (*HOOKS, "cost", "group_by")),
    *(({hook: coroutine}, TypeError, "without async") for hook in ("cost", "group_by")),
    *(({"max_batch_cost": cost, "cost": len}, TypeError, "a limit above 0") for cost in ("100", True, [1])),
    *(({"max_batch_cost": cost, "cost": len}, ValueError, "a limit above 0") for cost in (0, -1, float("nan"))),
    *(({"max_queue_bytes": size}, TypeError, "whole number") for size in (1.5, "1 GiB", None)),
    ({"max_queue_bytes": 0}, ValueError, "1 or more"),
    *(({"timeout": seconds}, TypeError, "give seconds, or None") for seconds in ("30", True)),
    *(({"timeout": seconds}, ValueError, "finite seconds above 0") for seconds in (0, -1, float("inf"), float("nan"))),
    *(({"max_run_time": seconds}, TypeError, "give seconds, or None") for seconds in ("60", False)),
    *(({"max_run_time": seconds}, ValueError, "finite seconds above 0") for seconds in (0, -0.5, float("inf"))),
    *(({"concurrency": number}, TypeError, "whole number") for number in ("2", 2.0, True)),
    *(({"concurrency": number}, ValueError, "1 or more") for number in (0, -1)),
    *(({"isolate_errors": value}, TypeError, "True or False") for value in (None, 1, "no")),
    *(({"overlap": value}, TypeError, "True or False") for value in (None, 0)),
    *(({"allow_nan": value}, TypeError, "True or False") for value in (None, "null")),
    *(({"workers_per_device": number}, TypeError, "whole number") for number in ("auto", 1.0, True, None)),
    *(({"workers_per_device": number}, ValueError, "1 or more") for number in (0, -2)),
    *(({"devices_per_worker": number}, TypeError, "whole number") for number in ("2", None)),
    *(({"devices_per_worker": number}, ValueError, "1 or more") for number in (0,)),
    *(({"worker": kind}, ValueError, "'process' or 'thread'") for kind in ("ray", 1, "")),
    *(({"forward_headers": names}, TypeError, "a tuple of names") for names in ("X-Tenant", 5, None)),
    *(({"forward_headers": names}, ValueError, "no header name") for names in (("X Tenant",), ("",), (5,))),
]


@pytest.mark.parametrize(("wrong", "error", "fix"), WRONG, ids=[str(wrong) for wrong, _, _ in WRONG])
def test_a_wrong_argument_is_refused_at_decoration_with_its_name_its_value_and_a_fix(
    wrong: dict[str, Any], error: type[Exception], fix: str
) -> None:
    with pytest.raises(error) as caught:
        serve(**{"max_batch_size": 4, **wrong})(batched)
    name, value = next(iter(wrong.items()))
    assert f"{name}={value!r}" in str(caught.value)
    assert fix in str(caught.value)


CREDENTIALS = ["Authorization", "cookie", "Proxy-Authorization", "X-API-Key", "Sec-WebSocket-Protocol"]


@pytest.mark.parametrize("header", CREDENTIALS)
def test_credentials_are_never_forwarded(header: str) -> None:
    with pytest.raises(ValueError) as caught:
        serve(forward_headers=("X-Tenant", header))(one)
    assert f"forward_headers=('X-Tenant', '{header}')" in str(caught.value)
    assert f"{header!r} carries credentials" in str(caught.value)
    assert "take it away" in str(caught.value)


def test_header_names_are_kept_in_lower_case_from_any_sequence() -> None:
    assert serve(forward_headers=["X-Tenant", "traceparent"])(one).options.forward_headers == (
        "x-tenant",
        "traceparent",
    )


# ---------------------------------------------------------------------- arguments that do not go together

WITHOUT_A_BATCH: list[dict[str, Any]] = [
    {"batch": list},
    {"unbatch": list},
    {"batch_timeout": 0.005},
    {"batch_timeout": 0},
    {"batch_dim": 1},
    {"batch_dim": (0, 1)},
    {"group_by": len},
    {"max_batch_cost": 10, "cost": len},
]


@pytest.mark.parametrize("options", WITHOUT_A_BATCH, ids=str)
def test_what_is_about_batches_is_refused_without_one(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        serve(**options)(one)
    name, value = next(iter(options.items()))
    assert f"{name}={'…' if callable(value) else repr(value)} needs a batch" in str(caught.value)
    assert f"give max_batch_size=, or take {name}= away" in str(caught.value)


def test_a_batch_of_one_is_a_batch() -> None:
    options: Any = {"batch": list, "unbatch": list, "batch_timeout": 0, "batch_dim": 1, "group_by": len}
    assert serve(max_batch_size=1, **options)(batched).batched


def test_a_cost_without_a_limit_and_a_limit_without_a_cost_are_refused_with_the_missing_one() -> None:
    with pytest.raises(ValueError, match=r"cost=… has nothing to be held against: give max_batch_cost="):
        serve(max_batch_size=4, cost=len)(batched)
    with pytest.raises(ValueError, match=r"max_batch_cost=100 needs cost=, a function of one input"):
        serve(max_batch_size=4, max_batch_cost=100)(batched)


@pytest.mark.parametrize("function", [batched, one, chunks])
def test_several_batches_at_a_time_need_an_async_function(function: Any) -> None:
    with pytest.raises(ValueError) as caught:
        serve(concurrency=2, name="f")(function)
    assert "concurrency=2 needs `async def f`" in str(caught.value)
    assert "workers_per_device=" in str(caught.value)
    assert serve(concurrency=1)(function).concurrency == 1


def test_an_async_hook_does_not_make_a_plain_function_run_twice_at_a_time() -> None:
    with pytest.raises(ValueError, match="concurrency=2 needs `async def one`"):
        serve(concurrency=2, decode_request=coroutine)(one)


@pytest.mark.parametrize(
    ("function", "size", "expected"),
    [
        (one, None, 1),
        (batched, 4, 1),
        (chunks, None, 1),
        (asynchronous, None, 100),
        (asynchronous_chunks, None, 100),
        (asynchronous_batch, 4, 1),
    ],
)
def test_only_an_unbatched_async_function_runs_many_at_a_time_by_itself(
    function: Any, size: int | None, expected: int
) -> None:
    assert serve(max_batch_size=size)(function).concurrency == expected
    assert serve(max_batch_size=size, concurrency=1)(function).concurrency == 1


@pytest.mark.parametrize("function", [asynchronous, asynchronous_batch, asynchronous_chunks])
def test_an_async_function_takes_a_concurrency(function: Any) -> None:
    assert serve(concurrency=7, max_batch_size=2)(function).concurrency == 7


@pytest.mark.parametrize("function", [chunks, asynchronous_chunks])
def test_a_stream_has_no_run_time_to_limit(function: Any) -> None:
    with pytest.raises(ValueError) as caught:
        serve(max_run_time=60)(function)
    assert "max_run_time=60 with a generator" in str(caught.value)
    assert "take max_run_time= away" in str(caught.value)


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "unbatch"])
@pytest.mark.parametrize("generator", [yields, yields_later])
def test_a_hook_that_yields_is_refused_with_what_to_do_instead(hook: str, generator: Any) -> None:
    function = with_state if hook in ("setup", "teardown") else batched
    options: Any = {"max_batch_size": 4, "setup": one if hook == "teardown" else None}
    with pytest.raises(TypeError, match=rf"{function.__name__}: {hook} .*write it without yield"):
        serve(**{**options, hook: generator})(function)


def test_unbatch_may_give_its_outputs_one_by_one_but_not_asynchronously() -> None:
    assert serve(max_batch_size=4, unbatch=yields)(batched).options.unbatch is yields
    with pytest.raises(TypeError, match="unbatch"):
        serve(max_batch_size=4, unbatch=yields_later)(batched)


# ---------------------------------------------------------------------- what functions and hooks take


@pytest.mark.parametrize(("size", "data"), [(None, "one item"), (4, "a batch")])
def test_two_data_arguments_are_refused_with_how_to_pack_them(size: int | None, data: str) -> None:
    with pytest.raises(TypeError) as caught:
        serve(max_batch_size=size)(two)
    assert "two() takes 2 arguments without a default" in str(caught.value)
    assert f"data is {data}" in str(caught.value)
    assert "pack several inputs into one tuple, dict or Struct" in str(caught.value)


TAKEN = {
    "setup": "the device",
    "decode_request": "the body",
    "batch": "the list of items",
    "unbatch": "the function's output",
    "encode_response": "one output",
}


@pytest.mark.parametrize("hook", TAKEN)
@pytest.mark.parametrize(("wrong", "count"), [(no_parameter, 0), (three, 3)])
def test_a_hook_with_a_wrong_number_of_parameters_is_refused_with_what_it_gets(
    hook: str, wrong: Callable[..., Any], count: int
) -> None:
    function = with_state if hook == "setup" else batched
    with pytest.raises(TypeError) as caught:
        serve(**{"max_batch_size": 4, hook: wrong})(function)  # type: ignore[call-overload]
    assert f"{function.__name__}: {hook} takes {count} arguments without a default" in str(caught.value)
    assert f"where data is {TAKEN[hook]}" in str(caught.value)


def test_a_hook_with_a_keyword_that_nobody_gives_is_refused() -> None:
    def pad(items: list[int], *, to: int) -> list[int]:
        return items

    with pytest.raises(TypeError, match="batched: batch takes 2 arguments"):
        serve(max_batch_size=4, batch=pad)(batched)


def test_only_with_setup_is_there_a_state_for_a_hook() -> None:
    with pytest.raises(TypeError, match="batch takes 2 arguments"):
        serve(max_batch_size=4, batch=with_state)(batched)
    assert serve(max_batch_size=4, setup=one, batch=with_state)(with_state).options.batch is with_state


def test_teardown_takes_the_state_or_nothing() -> None:
    assert serve(setup=one, teardown=one)(with_state).options.teardown is one
    assert serve(setup=one, teardown=no_parameter)(with_state).options.teardown is no_parameter
    assert serve(teardown=no_parameter)(one).options.teardown is no_parameter
    with pytest.raises(TypeError, match="teardown takes 1 arguments"):
        serve(teardown=one)(one)


@pytest.mark.parametrize("hook", [len, str, int, list, lambda *items: items, lambda items=None: items])
def test_a_hook_that_can_take_one_argument_is_taken(hook: Any) -> None:
    assert serve(max_batch_size=4, batch=hook)(batched).options.batch is hook


# ---------------------------------------------------------------------- what only an App can see


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_what_the_doors_answer_themselves_is_no_path_for_a_handler(name: str) -> None:
    handler: Handler[..., Any] = serve(path=f"/{name}")(one)
    with pytest.raises(ValueError) as caught:
        App(handler)
    assert f"/{name}" in str(caught.value)
    assert "give another name=" in str(caught.value)


def test_two_handlers_at_one_path_are_refused_with_both_names() -> None:
    first, second = serve(name="first")(one), serve(name="second", path="/first")(one)
    with pytest.raises(ValueError, match=r"'first' and 'second' both answer at /first: give another path="):
        App(first, second)


def test_predict_is_only_an_only_handlers_path() -> None:
    predict = serve(name="predict")(one)
    assert list(App(predict).handlers) == ["predict"]
    with pytest.raises(ValueError, match="only an app's one handler answers there"):
        App(predict, serve(one))


# ---------------------------------------------------------------------- the record


def test_a_path_follows_the_name() -> None:
    assert [Options(name="a").path, Options(name="a", path="/v1/b").path] == ["/a", "/v1/b"]


def test_options_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(Options(name="a"), "timeout", None)  # noqa: B010 - mypy knows that it is frozen


def test_no_argument_is_without_a_check_or_a_reason_to_have_none() -> None:
    checked = {name for wrong, _, _ in WRONG for name in wrong} | {name for wrong in WITHOUT_A_BATCH for name in wrong}
    elsewhere = {"name", "max_batch_size", "max_queue_size"}  # test_decorator
    anything = {"warmup"}  # a value of any type
    assert checked | elsewhere | anything == {field.name for field in dataclasses.fields(Options)}
