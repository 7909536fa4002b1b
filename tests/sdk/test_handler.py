import dataclasses
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Annotated, Any, assert_type

import msgspec
import numpy as np
import pytest
import torch

from tidegate import App, Array, Handler, LocalClient, current_batch, serve
from tidegate.handler import handler_of


class Point(msgspec.Struct):
    x: int


def first(x: int) -> int:
    """Give it back."""
    return x


def test_calling_a_handler_calls_the_function_with_all_its_arguments() -> None:
    @serve(max_batch_size=4)
    def scale(x: list[float], by: float = 2.0, *, plus: float = 0.0) -> list[float]:
        return [n * by + plus for n in x]

    answer = scale([1.0], 3.0, plus=1.0)
    assert_type(answer, list[float])
    assert answer == [4.0]


def test_a_handler_looks_like_its_function() -> None:
    handler = serve(first)
    assert vars(handler)["__name__"] == "first"
    assert (handler.__doc__, handler.__module__) == ("Give it back.", __name__)
    assert inspect.signature(handler) == inspect.signature(first)
    assert handler.function is first
    assert repr(handler) == "<Handler first>"


def test_a_size_makes_a_handler_batched_also_when_it_is_one() -> None:
    def echo(x: list[int]) -> list[int]:
        return x

    assert [serve(max_batch_size=size)(echo).batched for size in (None, 1, 2)] == [False, True, True]


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(serve(first).options, "name", "other")  # noqa: B010 - mypy knows that it is frozen


@pytest.mark.parametrize(
    ("annotation", "item"),
    [
        (list[int], int),
        (list[Point], Point),
        (Sequence[str], str),
        (list[dict[str, int]], dict[str, int]),
        (list[np.ndarray], np.ndarray),
        (list[Annotated[np.ndarray, Array("float32", (2,))]], np.ndarray),
        (np.ndarray, np.ndarray),
        (list, inspect.Parameter.empty),
        (inspect.Parameter.empty, inspect.Parameter.empty),
    ],
)
def test_a_batched_functions_annotation_says_what_one_item_is(annotation: Any, item: Any) -> None:
    def function(x):  # type: ignore[no-untyped-def]
        return x

    if annotation is not inspect.Parameter.empty:
        function.__annotations__["x"] = annotation
    assert serve(max_batch_size=4)(function).codec.annotation == item


def test_an_unbatched_functions_annotation_is_the_items_own() -> None:
    @serve
    def total(x: list[int]) -> int:
        return sum(x)

    assert total.codec.annotation == list[int]


def test_the_arrays_promise_is_kept_for_its_items() -> None:
    @serve(max_batch_size=4)
    def double(x: Annotated[np.ndarray, Array("float32", (2,))]) -> np.ndarray:
        return x * 2

    assert double.codec.array == Array("float32", (2,))


def test_with_setup_the_second_parameter_is_the_data() -> None:
    @serve(max_batch_size=4, setup=lambda device: 3)
    def scale(factor: float, x: list[int]) -> list[float]:
        return [factor * n for n in x]

    assert scale.codec.annotation is int


def test_behind_a_batch_hook_the_annotation_says_nothing_about_an_item_unless_it_is_a_list() -> None:
    def padded(x: np.ndarray) -> np.ndarray:
        return x

    def listed(x: list[int]) -> list[int]:
        return x

    assert serve(max_batch_size=4, batch=np.stack)(padded).codec.annotation is inspect.Parameter.empty
    assert serve(max_batch_size=4, batch=list)(listed).codec.annotation is int


def no_data() -> int:
    return 1


def two(a: int, b: int) -> int:
    return a + b


def keyword(a: int, *, b: int) -> int:
    return a + b


def optional(a: int = 1) -> int:
    return a


def many(*a: int) -> int:
    return sum(a)


@pytest.mark.parametrize("function", [no_data, two, keyword, optional, many])
def test_a_function_that_does_not_take_exactly_the_data_is_refused_by_name_with_a_fix(function: Any) -> None:
    with pytest.raises(TypeError) as caught:
        serve(function)
    assert f"{function.__name__}() takes" in str(caught.value)
    assert "a handler takes (data)" in str(caught.value)
    assert "one tuple, dict or Struct" in str(caught.value)


@pytest.mark.parametrize(("size", "data"), [(None, "one item"), (4, "a batch")])
def test_with_setup_the_refusal_says_that_the_state_comes_first(size: int | None, data: str) -> None:
    with pytest.raises(TypeError) as caught:
        serve(max_batch_size=size, setup=str)(first)
    assert "takes (state, data)" in str(caught.value)
    assert f"data is {data}" in str(caught.value)


def test_annotations_that_cannot_be_read_are_refused_with_the_handlers_name() -> None:
    def lost(x: "Nowhere") -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1

    handler = serve(lost)
    with pytest.raises(TypeError) as caught:
        App(handler)
    assert "lost()" in str(caught.value)
    assert "Nowhere" in str(caught.value)


def test_an_annotation_may_name_a_class_that_is_defined_further_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def later(x: "Later") -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1

    handler = serve(later)
    monkeypatch.setitem(globals(), "Later", Point)
    App(handler)
    assert handler.codec.annotation is Point


def test_a_class_of_the_users_may_be_named_by_a_string() -> None:
    def shift(p: "Point") -> int:
        return p.x

    assert serve(shift).codec.annotation is Point


@pytest.mark.parametrize(
    ("size", "workers", "expected"), [(None, 1, 1024), (64, 1, 1024), (512, 1, 2048), (64, 8, 2048)]
)
def test_an_automatic_queue_holds_four_full_batches_per_worker_and_1024_at_least(
    size: int | None, workers: int, expected: int
) -> None:
    assert serve(max_batch_size=size)(first).options.policy(workers).max_queue_size == expected


def test_a_given_queue_size_and_window_reach_the_policy() -> None:
    policy = serve(max_batch_size=3, batch_timeout=0.5, max_queue_size=7)(first).options.policy()
    assert (policy.max_batch_size, policy.batch_timeout, policy.max_queue_size) == (3, 0.5, 7)


def test_an_unbatched_function_runs_its_items_one_by_one() -> None:
    assert serve(first).options.policy().max_batch_size == 1


@pytest.mark.parametrize(("given", "dims"), [(0, (0, 0)), (-1, (-1, -1)), ((1, 0), (1, 0))])
def test_one_batch_axis_is_that_of_input_and_output(given: int | tuple[int, int], dims: tuple[int, int]) -> None:
    assert serve(max_batch_size=2, batch_dim=given)(first).options.dims == dims


def test_only_arrays_of_one_shape_and_dtype_share_a_batch_unless_there_is_a_batch_hook() -> None:
    def echo(x: list[Any]) -> list[Any]:
        return x

    short, long = np.zeros(2), np.zeros(3)
    plain: Handler[..., Any] = serve(max_batch_size=4)(echo)
    assert plain.group(short) == plain.group(np.ones(2)) != plain.group(long)
    assert plain.group("text") == plain.group({"any": 1})
    hooked: Handler[..., Any] = serve(max_batch_size=4, batch=list)(echo)
    assert hooked.group(short) == hooked.group(long)


# ---------------------------------------------------------------------- attached hooks

ATTACHABLE = ["decode_request", "batch", "unbatch", "encode_response"]


def served(**options: Any) -> Handler[..., Any]:
    def handler(x: list[Any]) -> list[Any]:
        return x

    return serve(**{"max_batch_size": 4, **options})(handler)


def stateful(**options: Any) -> Handler[..., Any]:
    def handler(state: Any, x: list[Any]) -> list[Any]:
        return x

    return serve(**{"max_batch_size": 4, "setup": str, **options})(handler)


@pytest.mark.parametrize("name", ATTACHABLE)
def test_attaching_a_hook_records_it_and_gives_it_back_unchanged(name: str) -> None:
    handler = served()

    def hook(x: Any) -> Any:
        return x

    assert getattr(handler, name)(hook) is hook
    assert getattr(handler.options, name) is hook


@pytest.mark.parametrize("name", ATTACHABLE)
def test_a_hook_cannot_be_attached_to_what_an_app_serves(name: str) -> None:
    handler = served()
    App(handler)
    with pytest.raises(RuntimeError, match=f"handler is being served: attach {name} before its App is built"):
        getattr(handler, name)(list)


@pytest.mark.parametrize("name", ATTACHABLE)
def test_there_is_one_hook_of_a_kind(name: str) -> None:
    given, attached = served(**{name: list}), served()
    getattr(attached, name)(list)
    for handler in (given, attached):
        with pytest.raises(ValueError, match=f"handler has a {name} already"):
            getattr(handler, name)(tuple)
        assert getattr(handler.options, name) is list


@pytest.mark.parametrize("name", ["batch", "unbatch"])
def test_a_batch_hook_cannot_be_attached_where_there_is_no_batch(name: str) -> None:
    handler = served(max_batch_size=None)
    with pytest.raises(ValueError, match=f"{name}=… needs a batch: give max_batch_size="):
        getattr(handler, name)(list)
    assert getattr(handler.options, name) is None


@pytest.mark.parametrize("name", ATTACHABLE)
def test_a_hook_that_does_not_fit_is_refused_where_it_is_attached_and_leaves_nothing_behind(name: str) -> None:
    def nothing() -> None: ...

    handler = served()
    for wrong in (5, nothing, two):
        with pytest.raises(TypeError, match=name):
            getattr(handler, name)(wrong)
    assert getattr(handler, name)(list) is list


def test_an_attached_generator_is_refused_where_it_is_attached() -> None:
    def one_by_one(x: Any) -> Iterator[Any]:
        yield x

    handler = served()
    with pytest.raises(TypeError, match="encode_response is called once per output or chunk; write it without yield"):
        handler.encode_response(one_by_one)


@pytest.mark.parametrize("attached", [True, False])
def test_a_hook_with_one_parameter_more_gets_the_state_first(attached: bool) -> None:
    seen = []

    def decode(state: str, body: int) -> int:
        seen.append(("decode", state))
        return body

    def batch(state: str, items: list[int]) -> list[int]:
        seen.append(("batch", state))
        return items

    def unbatch(state: str, output: list[int]) -> list[int]:
        seen.append(("unbatch", state))
        return output

    def encode(state: str, output: int) -> int:
        seen.append(("encode", state))
        return output

    hooks = {"decode_request": decode, "batch": batch, "unbatch": unbatch, "encode_response": encode}
    handler = stateful(setup=lambda device: "loaded", **({} if attached else hooks))
    if attached:
        for name, hook in hooks.items():
            getattr(handler, name)(hook)
    with LocalClient(handler) as client:
        assert client.call(3) == 3
    assert seen == [("decode", "loaded"), ("batch", "loaded"), ("unbatch", "loaded"), ("encode", "loaded")]


def test_a_hook_that_takes_any_number_gets_the_data_alone() -> None:
    seen = []

    def decode(*bodies: Any) -> Any:
        seen.append(bodies)
        return bodies[0]

    def batch(items: list[int], *more: Any) -> list[int]:
        seen.append((items, *more))
        return items

    with LocalClient(stateful(decode_request=decode, batch=batch)) as client:
        assert client.call(3) == 3
    assert seen == [(3,), ([3],)]


def test_the_annotation_of_decode_request_decides_what_the_body_is() -> None:
    handler = served()
    assert handler.codec.annotation == Any

    @handler.decode_request
    def read(body: Point) -> int:
        return body.x

    assert handler.codec.annotation == Point
    with LocalClient(handler) as client:
        assert client.call(handler.codec.decode_json(b'{"x": 3}')) == 3


def test_behind_decode_request_the_state_is_not_the_body() -> None:
    def read(state: list[str], body: Point) -> int:
        return body.x

    assert stateful(decode_request=read).codec.annotation is Point


def test_a_decode_request_without_an_annotation_takes_any_json_value() -> None:
    def double(x: np.ndarray) -> np.ndarray:
        return x * 2

    handler = serve(max_batch_size=4, decode_request=lambda body: np.asarray(body["input"]))(double)
    assert handler.codec.annotation is inspect.Parameter.empty


def test_items_are_not_grouped_before_they_are_decoded() -> None:
    handler = served(decode_request=np.asarray)
    assert handler.group(np.zeros(2)) == handler.group(np.zeros(3))


def test_a_group_must_be_hashable() -> None:
    with pytest.raises(TypeError, match=r"group_by\(\) gave \[3\], which is not hashable"):
        served(group_by=lambda value: [value]).group(3)


def test_a_handler_is_not_decorated_again() -> None:
    handler = serve(first)
    with pytest.raises(TypeError, match="<Handler first>, which is a handler already"):
        serve(max_batch_size=4)(handler)


def test_a_functions_own_attributes_stay_and_do_not_replace_the_handlers() -> None:
    def function(x: int) -> int:
        return x

    vars(function).update({"author": "A", "_options": None, "target": None})
    handler = serve(function)
    assert vars(handler)["author"] == "A"
    assert handler(3) == 3
    assert handler.name == "function"


def test_an_object_may_be_async_or_a_stream_by_its_call() -> None:
    class Later:
        async def __call__(self, x: int) -> int:
            return x + 1

    class Chunks:
        def __call__(self, x: int) -> Iterator[int]:
            yield from range(x)

    later, chunks = serve(name="later")(Later()), serve(name="chunks")(Chunks())
    assert (later.is_async, later.concurrency, later.streams) == (True, 100, False)
    assert (chunks.is_async, chunks.streams) == (False, True)
    with LocalClient(later, chunks) as client:
        assert client.call(1, handler="later") == 2
        assert list(client.stream(3, handler="chunks")) == [0, 1, 2]


@pytest.mark.parametrize("hook", ["setup", "teardown", *ATTACHABLE])
def test_an_async_hook_makes_a_handler_asynchronous(hook: str) -> None:
    async def later(x: Any) -> Any:
        return x

    handler = stateful(**{hook: later}) if hook in ("setup", "teardown") else served(**{hook: later})
    assert handler.is_async
    assert not served().is_async


# ---------------------------------------------------------------------- the class form


def test_a_class_comes_back_itself_and_is_served() -> None:
    class Scale:
        """Times three."""

        def __init__(self) -> None:
            self.factor = 3

        def predict(self, x: list[int]) -> list[int]:
            return [self.factor * n for n in x]

    decorated = serve(max_batch_size=4)(Scale)
    assert_type(decorated, type[Scale])
    assert decorated is Scale
    assert decorated().predict([1]) == [3]
    assert repr(handler_of(Scale)) == "<Handler Scale>"
    with LocalClient(Scale) as client:
        assert client.call(2) == 6


def test_a_class_is_served_without_parentheses_too() -> None:
    @serve
    class Echo:
        def predict(self, x: int) -> int:
            return x

    assert_type(Echo(), Echo)
    with LocalClient(Echo) as client:
        assert client.call(2) == 2


def test_a_subclass_is_not_served_because_its_base_is() -> None:
    @serve(max_batch_size=4)
    class Base:
        def predict(self, x: list[int]) -> list[int]:
            return x

    class Child(Base):
        pass

    with pytest.raises(TypeError, match="Child'> is no handler: decorate it with @serve"):
        App(Child)
    serve(name="child")(Child)
    assert handler_of(Child).name == "child"
    assert handler_of(Base).name == "Base"


def test_a_class_is_not_decorated_again() -> None:
    class Echo:
        def predict(self, x: int) -> int:
            return x

    serve(Echo)
    with pytest.raises(TypeError, match="class Echo is a handler already"):
        serve(max_batch_size=4)(Echo)


def test_a_class_without_predict_is_refused() -> None:
    class Empty:
        pass

    with pytest.raises(TypeError, match=r"class Empty needs a predict method: def predict\(self, batch\)"):
        serve(Empty)


@pytest.mark.parametrize("hook", ["setup", "teardown", *ATTACHABLE])
def test_a_class_has_its_hooks_as_methods_only(hook: str) -> None:
    class Echo:
        def predict(self, x: list[int]) -> list[int]:
            return x

    with pytest.raises(ValueError, match=f"{hook}=… with a class: define it as a method of Echo"):
        serve(**{"max_batch_size": 4, hook: list})(Echo)  # type: ignore[call-overload]


def test_a_methods_parameters_are_checked_without_self() -> None:
    class Two:
        def predict(self, x: int, y: int) -> int:
            return x

    class State:
        def setup(self, device: str) -> None: ...
        def predict(self, x: int) -> int:
            return x

        def encode_response(self, state: Any, x: int) -> int:
            return x

    with pytest.raises(TypeError, match=r"Two\(\) takes 2 arguments"):
        serve(Two)
    with pytest.raises(TypeError, match="State: encode_response takes 2 arguments"):
        serve(State)


def test_static_and_class_methods_and_other_callables_are_hooks_too() -> None:
    class Mixed:
        batch = list
        factor = 2

        @staticmethod
        def decode_request(body: Point) -> int:
            return body.x

        @classmethod
        def encode_response(cls, output: int) -> int:
            return cls.factor * output

        @staticmethod
        def predict(x: list[int]) -> list[int]:
            return x

    serve(max_batch_size=4)(Mixed)
    assert handler_of(Mixed).codec.annotation is Point
    with LocalClient(Mixed) as client:
        assert client.call(Point(3)) == 6


def test_the_batch_hooks_of_a_class_are_left_out_where_there_is_no_batch() -> None:
    class Both:
        def batch(self, inputs: Any) -> Any:
            raise AssertionError("LitServe does not call it either")

        def predict(self, x: int) -> int:
            return x + 1

        def unbatch(self, output: Any) -> Any:
            raise AssertionError("LitServe does not call it either")

    serve(Both)
    with LocalClient(Both) as client:
        assert client.call(1) == 2


def test_each_worker_makes_its_own_instance_with_its_device() -> None:
    seen = []

    @serve(workers_per_device=2)
    class Where:
        device: str

        def setup(self, device: str) -> None:
            seen.append((id(self), self.device == device))

        def predict(self, x: int) -> str:
            return self.device

    with LocalClient(Where) as client:
        assert client.call(1) == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert len({instance for instance, _ in seen}) == 2
    assert all(same for _, same in seen)


def test_a_context_is_one_dict_per_request_shared_by_its_hooks() -> None:
    @serve(max_batch_size=4, batch_timeout=5.0)
    class Remember:
        def decode_request(self, request: int, context: dict[str, Any]) -> int:
            context["asked"] = request
            return request

        def predict(self, x: list[int], context: list[dict[str, Any]]) -> list[int]:
            for n, one in zip(x, context, strict=True):
                one["seen"] = n * 10
            return x

        def encode_response(self, output: int, *, context: dict[str, Any]) -> dict[str, Any]:
            return {**context, "size": current_batch().size}

    with LocalClient(Remember) as client:
        assert list(client.map(range(4))) == [{"asked": n, "seen": n * 10, "size": 4} for n in range(4)]


def test_an_unbatched_predict_gets_its_requests_own_context() -> None:
    @serve
    class Remember:
        def decode_request(self, request: int, context: dict[str, Any]) -> int:
            context["asked"] = request
            return request

        def predict(self, x: int, context: dict[str, Any]) -> dict[str, Any]:
            return context

    with LocalClient(Remember) as client:
        assert client.call(3) == {"asked": 3}


def test_in_a_function_context_is_a_name_like_any_other() -> None:
    @serve
    def answer(context: str) -> str:
        return context.upper()

    with LocalClient(answer) as client:
        assert client.call("text") == "TEXT"

    def ask(question: str, context: str) -> str:
        return question

    with pytest.raises(TypeError, match=r"ask\(\) takes 2 arguments"):
        serve(ask)


class HTTPException(Exception):
    """What LitServe's users raise, which is FastAPI's."""

    def __init__(self, status_code: int, detail: str) -> None:
        self.status_code = status_code
        self.detail = detail


def test_the_body_of_a_litapi_serves_unchanged() -> None:
    # As it stands in LitServe's documentation, but for the first two lines.
    @serve(max_batch_size=8, batch_timeout=0.05)
    class SimpleLitAPI:
        def setup(self, device):  # type: ignore[no-untyped-def]
            self.model = lambda x: x**2
            self.used_device = self.device  # type: ignore[attr-defined]
            assert device == self.used_device

        def decode_request(self, request, context):  # type: ignore[no-untyped-def]
            if "input" not in request:
                raise HTTPException(status_code=400, detail="no input")
            context["name"] = request.get("name", "nobody")
            return np.asarray(request["input"])

        def batch(self, inputs):  # type: ignore[no-untyped-def]
            return np.stack(inputs)

        def predict(self, x, context):  # type: ignore[no-untyped-def]
            assert isinstance(x, np.ndarray)
            assert len(context) == len(x)
            return self.model(x)  # type: ignore[no-untyped-call]

        def unbatch(self, output):  # type: ignore[no-untyped-def]
            return list(output)

        def encode_response(self, output, context):  # type: ignore[no-untyped-def]
            return {"output": output.tolist(), "name": context["name"]}

    with LocalClient(SimpleLitAPI) as client:
        requests: list[dict[str, Any]] = [{"input": [n, n + 1], "name": f"n{n}"} for n in range(10)]
        answers = list(client.map([*requests, {}], return_exceptions=True))
    assert answers[:-1] == [{"output": [n * n, (n + 1) ** 2], "name": f"n{n}"} for n in range(10)]
    assert (answers[-1].status, answers[-1].detail) == (400, "no input")


def test_the_body_of_a_streaming_litapi_needs_an_encode_response_per_chunk() -> None:
    class Stream:
        def predict(self, x: int) -> Iterator[int]:
            yield from range(x)

        def encode_response(self, outputs: Iterator[int]) -> Iterator[dict[str, int]]:
            for output in outputs:
                yield {"output": output}

    with pytest.raises(TypeError, match="encode_response is called once per output or chunk; write it without yield"):
        serve(Stream)


def test_a_class_may_stream_and_be_async() -> None:
    @serve(max_batch_size=4)
    class Tokens:
        async def predict(self, x: list[int]) -> AsyncIterator[list[int]]:
            for step in range(2):
                yield [n + step for n in x]

        def encode_response(self, output: int) -> dict[str, int]:
            return {"output": output}

    handler = handler_of(Tokens)
    assert (handler.streams, handler.is_async) == (True, True)
    with LocalClient(Tokens) as client:
        assert list(client.stream(5)) == [{"output": 5}, {"output": 6}]


def test_a_decorated_method_is_a_method() -> None:
    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @serve(max_batch_size=4)
    class Double:
        @wrapped
        def predict(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    with LocalClient(Double) as client:
        assert client.call(torch.tensor([1, 2])).tolist() == [2, 4]
