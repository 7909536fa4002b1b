import dataclasses
import functools
from collections.abc import Callable
from typing import Any, assert_type

import numpy as np
import pytest

from tidegate import Handler, serve


def echo(x: list[int]) -> list[int]:
    return x


def test_serve_works_with_and_without_parentheses() -> None:
    assert serve(echo).name == serve()(echo).name == "echo"


def test_a_handler_keeps_its_functions_types() -> None:
    handler = serve(max_batch_size=4)(echo)
    assert_type(handler([1]), list[int])
    assert_type(serve(echo)([1]), list[int])
    assert isinstance(handler, Handler)


def test_what_was_told_is_recorded_unchanged() -> None:
    def load(device: str) -> None: ...

    def lists(state: None, x: list[int]) -> list[int]:
        return x

    told: dict[str, Any] = {
        "name": "renamed",
        "max_batch_size": 4,
        "batch_timeout": 0.25,
        "batch_dim": (1, 0),
        "batch": list,
        "unbatch": list,
        "setup": load,
        "max_queue_size": 10,
        "path": "/v1/renamed",
        "decode_request": int,
        "encode_response": str,
        "teardown": load,
        "max_batch_cost": 100,
        "cost": float,
        "group_by": str,
        "max_queue_bytes": 1000,
        "timeout": 5,
        "concurrency": 1,
        "isolate_errors": False,
        "devices": "cpu",
        "workers_per_device": 2,
        "devices_per_worker": 1,
        "worker": "thread",
        "max_run_time": 60,
        "overlap": False,
        "forward_headers": ("x-tenant",),
        "warmup": 1,
        "allow_nan": True,
    }
    handler: Handler[..., Any] = serve(**told)(lists)
    assert {name: getattr(handler.options, name) for name in told} == told
    assert set(told) == {field.name for field in dataclasses.fields(handler.options)}
    assert handler.name == "renamed"


def test_by_default_a_function_takes_one_item_and_the_window_is_automatic() -> None:
    assert serve(echo).options.max_batch_size is None
    assert serve(echo).options.batch_timeout == "auto"


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"name": ""}, ValueError, "letters, digits"),
    ({"name": "a/b"}, ValueError, "letters, digits"),
    ({"name": "a b"}, ValueError, "letters, digits"),
    ({"name": "größe"}, ValueError, "letters, digits"),
    ({"name": "-"}, ValueError, "letters, digits"),
    ({"name": 5}, TypeError, "give a text"),
    ({"max_batch_size": 0}, ValueError, "1 or more"),
    ({"max_batch_size": -1}, ValueError, "1 or more"),
    ({"max_batch_size": "8"}, TypeError, "whole number"),
    ({"max_batch_size": 8.0}, TypeError, "whole number"),
    ({"max_batch_size": True}, TypeError, "whole number"),
    ({"batch_timeout": -0.1}, ValueError, '"auto"'),
    ({"batch_timeout": float("nan")}, ValueError, '"auto"'),
    ({"batch_timeout": float("inf")}, ValueError, '"auto"'),
    ({"batch_timeout": "fast"}, TypeError, '"auto"'),
    ({"batch_timeout": None}, TypeError, '"auto"'),
    ({"batch_dim": "0"}, TypeError, "give an axis"),
    ({"batch_dim": 1.0}, TypeError, "give an axis"),
    ({"batch_dim": True}, TypeError, "give an axis"),
    ({"batch_dim": (0, 1, 2)}, TypeError, "(axis of the input, axis of the output)"),
    ({"batch_dim": (0, None)}, TypeError, "(axis of the input, axis of the output)"),
    ({"batch": 5}, TypeError, "give a callable"),
    ({"unbatch": "split"}, TypeError, "give a callable"),
    ({"setup": {}}, TypeError, "give a callable"),
    ({"max_queue_size": 0}, ValueError, "1 or more"),
    ({"max_queue_size": 1.5}, TypeError, "whole number"),
    ({"max_queue_size": None}, TypeError, "whole number"),
]


@pytest.mark.parametrize(("wrong", "error", "fix"), WRONG, ids=[str(wrong) for wrong, _, _ in WRONG])
def test_a_wrong_argument_is_refused_at_once_with_its_name_its_value_and_a_fix(
    wrong: dict[str, Any], error: type[Exception], fix: str
) -> None:
    arguments: dict[str, Any] = {"max_batch_size": 4, **wrong}
    with pytest.raises(error) as caught:
        serve(**arguments)(echo)
    ((name, value),) = wrong.items()
    assert f"{name}={value!r}" in str(caught.value)
    assert fix in str(caught.value)


@pytest.mark.parametrize("hook", ["batch", "unbatch"])
def test_a_batch_hook_without_a_batch_is_refused_with_both_fixes(hook: str) -> None:
    arguments: dict[str, Any] = {hook: list}
    with pytest.raises(ValueError) as caught:
        serve(**arguments)(echo)
    assert f"{hook}=" in str(caught.value)
    assert "max_batch_size=" in str(caught.value)


def test_an_unknown_argument_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(TypeError, match=r"'max_batchsize'; did you mean max_batch_size\?"):
        serve(max_batchsize=4)  # type: ignore[call-overload]


def test_an_unknown_argument_that_resembles_none_is_refused_with_all_there_are() -> None:
    with pytest.raises(TypeError, match="no argument 'zzz'; it has name, path, max_batch_size, batch_timeout"):
        serve(zzz=4)  # type: ignore[call-overload]


def test_options_are_keywords_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        serve(echo, 4)  # type: ignore[call-overload]


@pytest.mark.parametrize("thing", [5, "echo", [echo]])
def test_what_is_no_function_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="decorate a function"):
        serve(thing)


@pytest.mark.parametrize("nameless", [lambda x: x, functools.partial(echo)])
def test_a_function_without_a_usable_name_needs_one(nameless: Any) -> None:
    with pytest.raises(ValueError, match="name="):
        serve(nameless)


def test_a_lambda_with_a_name_is_served() -> None:
    nameless: Callable[[int], int] = lambda x: x
    identity = serve(name="identity")(nameless)
    assert (identity.name, identity(3)) == ("identity", 3)


def test_decorating_does_not_run_the_function_or_its_hooks() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("only a worker may call this")

    @serve(max_batch_size=4, setup=never, batch=never, unbatch=never)
    def handler(state: Any, x: list[int]) -> list[int]:
        raise AssertionError("only a worker may call this")

    assert handler.name == "handler"


def test_a_wrapped_function_is_read_through_its_wrapper() -> None:
    def wrapped(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @serve(max_batch_size=4)
    @wrapped
    def double(x: np.ndarray) -> np.ndarray:
        return x * 2

    assert double.codec.annotation is np.ndarray
    assert double(np.array([2])).tolist() == [4]
