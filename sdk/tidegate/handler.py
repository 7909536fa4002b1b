"""A handler: the user's function or class with its options and hooks."""

from __future__ import annotations

import copy
import functools
import inspect
import typing
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, ParamSpec, Self, TypeVar

from tidegate.codec import Codec
from tidegate.collate import group_of
from tidegate.options import HOOKS, Options

__all__ = ["Handler", "Takes", "handler_of", "is_handler"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__tidegate_handler__"
_LISTS = (list, Sequence)


class Takes(NamedTuple):
    """What a worker gives a hook: the parameter for the data, and whether the state goes before and a context beside it."""

    data: inspect.Parameter
    state: bool = False
    context: bool = False


class Handler(Generic[P, R]):
    """A served function. Calling it calls the function itself; no server, no batching.

    Hooks can be attached until an App is built from it; each attaching method returns its hook unchanged.

    Example:
        >>> from tidegate import serve
        >>> @serve(max_batch_size=4)
        ... def double(x: list[int]) -> list[int]:
        ...     return [2 * n for n in x]
        >>> @double.decode_request
        ... def from_text(body: str) -> int:
        ...     return int(body)
        >>> double([1, 2]), from_text("3"), double.name
        ([2, 4], 3, 'double')
    """

    def __init__(self, target: Callable[P, R], options: Options) -> None:
        if not inspect.isclass(target):
            # First: it brings the function's own attributes, which may be called like these.
            functools.update_wrapper(self, target)
        self.target = target
        self._options = replace(options, **_class_hooks(target, options)) if inspect.isclass(target) else options
        self._frozen = False
        self._codec: Codec | None = None
        self._check()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.target(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Handler {self.name}>"

    # ------------------------------------------------------------------ hooks

    def decode_request(self, hook: F) -> F:
        """Attach `decode_request(body) -> item`; its parameter's annotation says what the body is."""
        return self._attach("decode_request", hook)

    def batch(self, hook: F) -> F:
        """Attach `batch(items) -> batch`."""
        return self._attach("batch", hook)

    def unbatch(self, hook: F) -> F:
        """Attach `unbatch(output) -> outputs`, one per item."""
        return self._attach("unbatch", hook)

    def encode_response(self, hook: F) -> F:
        """Attach `encode_response(output) -> value`."""
        return self._attach("encode_response", hook)

    def _attach(self, name: str, hook: F) -> F:
        if self._frozen:
            raise RuntimeError(f"{self.name} is being served: attach {name} before its App is built")
        if getattr(self._options, name) is not None:
            raise ValueError(f"{self.name} has a {name} already: give one, as an argument or attached")
        before, attached = self._options, {name: hook}
        self._options = replace(before, **attached)  # type: ignore[arg-type]  # each hook is a callable
        try:
            self._check()
        except BaseException:
            self._options = before
            raise
        return hook

    def override(self, **changes: Any) -> Self:
        """The same function with other arguments of `serve`, hooks excepted: what the command line's flags do.

        Raises TypeError or ValueError as `serve` does. This one stays as it is.
        """
        for name in changes.keys() & {*HOOKS, "name"}:
            raise TypeError(f"override({name}=…): hooks and the name belong to the function; give them to @serve")
        changed = copy.copy(self)
        changed._options = replace(self._options, **changes)
        changed._frozen, changed._codec = False, None
        changed._check()
        return changed

    # ------------------------------------------------------------------ what it is

    @property
    def options(self) -> Options:
        """Everything `serve` was told, hooks included."""
        return self._options

    @property
    def name(self) -> str:
        """How it is addressed."""
        return self._options.name

    @property
    def batched(self) -> bool:
        """Whether the function takes a batch."""
        return self._options.max_batch_size is not None

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself; for a class its unbound `predict`."""
        target: Any = self.target
        function: Callable[..., Any] = target.predict if self.is_class else target
        return function

    @property
    def is_class(self) -> bool:
        """Whether workers make an instance of `target`."""
        return inspect.isclass(self.target)

    @functools.cached_property
    def streams(self) -> bool:
        """Whether the function is a generator, plain or async."""
        return _is_generator(self.function)

    @property
    def is_async(self) -> bool:
        """Whether the function or one of its hooks is `async def`."""
        hooks = [self.function, *(getattr(self._options, name) for name in HOOKS)]
        return any(map(_is_async, hooks))

    @property
    def concurrency(self) -> int:
        """Batches in flight per worker."""
        if self._options.concurrency is not None:
            return self._options.concurrency
        return 100 if not self.batched and _is_async(self.function) else 1

    @property
    def codec(self) -> Codec:
        """How its inputs are read and its outputs written."""
        if self._codec is None or not self._frozen:
            self._codec = Codec(self._item_annotation())
        return self._codec

    def freeze(self, *, writable: bool = True) -> None:
        """Check the whole and accept no more hooks; raises TypeError or ValueError.

        writable: as for `Codec`: False where all that is read is copied on its way to the function anyway.
        """
        self._check()
        self._codec = Codec(self._item_annotation(), writable=writable)
        self._frozen = True

    def group(self, value: Any) -> Hashable:
        """Which items may share a batch with this one."""
        options = self._options
        if options.group_by is not None:
            group = options.group_by(value)
            try:
                hash(group)
            except TypeError:
                raise TypeError(
                    f"group_by() gave {group!r}, which is not hashable: give a text, number or tuple"
                ) from None
            return group
        # Behind decode_request the value is not yet what is stacked: the worker groups by shape then.
        by_shape = self.batched and options.batch is None and options.decode_request is None
        return group_of(value) if by_shape else None

    # ------------------------------------------------------------------ checks

    def _check(self) -> None:
        options = self._options
        self.takes("function")
        if options.concurrency is not None and options.concurrency > 1 and not _is_async(self.function):
            raise ValueError(
                f"concurrency={options.concurrency} needs `async def {self.name}`: "
                "a plain function runs one batch at a time; use workers_per_device= for more"
            )
        if self.streams and options.max_run_time is not None:
            raise ValueError(
                f"max_run_time={options.max_run_time} with a generator: a stream runs as long as it is read; "
                "take max_run_time= away"
            )
        for name in HOOKS:
            hook = getattr(options, name)
            if hook is None:
                continue
            # `unbatch` may give its outputs one by one.
            if _is_generator(hook) and (name != "unbatch" or _is_async(hook)):
                raise TypeError(f"{self.name}: {name} {_INSTEAD_OF_YIELD[name]}; write it without yield")
            self.takes(name)

    def takes(self, role: str) -> Takes:
        """How a worker calls the function (`role` is "function") or a hook; TypeError when the parameters do not fit."""
        hook = self.function if role == "function" else getattr(self._options, role)
        target: Any = self.target
        bound = self.is_class and _is_method(target, "predict" if role == "function" else role)
        return _takes(role, hook, self._options, in_class=self.is_class, bound=bound)

    def _item_annotation(self) -> Any:
        """The annotation of what the door decodes: one item, or what decode_request takes."""
        options = self._options
        empty = inspect.Parameter.empty
        if options.decode_request is not None:
            return _hints(options.decode_request).get(self.takes("decode_request").data.name, empty)
        annotation = _hints(self.function).get(self.takes("function").data.name, empty)
        if not self.batched:
            return annotation
        if options.batch is not None:
            # The items are what the batch hook takes. Where that is not annotated, the function may still take a list
            # of them; any other batch says nothing about an item.
            listed = _hints(options.batch).get(self.takes("batch").data.name, empty)
            annotation = next((one for one in (listed, annotation) if typing.get_origin(one) in _LISTS), empty)
        if typing.get_origin(annotation) in _LISTS:
            return typing.get_args(annotation)[0]
        return empty if annotation is list else annotation


def handler_of(thing: object) -> Handler[..., Any]:
    """The handler that `serve` made of a function or class; TypeError for anything else."""
    if isinstance(thing, Handler):
        return thing
    # Looked up on the class itself: a subclass is not served because its base is.
    handler = vars(thing).get(_MARK) if inspect.isclass(thing) else None
    if not isinstance(handler, Handler):
        raise TypeError(f"{thing!r} is no handler: decorate it with @serve")
    return handler


def is_handler(thing: object) -> bool:
    """Whether `serve` made a handler of this function or class."""
    return isinstance(thing, Handler) or (inspect.isclass(thing) and _MARK in vars(thing))


def mark_class(cls: type, options: Options) -> None:
    """Record a class as a handler."""
    if _MARK in vars(cls):
        raise TypeError(f"class {cls.__name__} is a handler already: decorate it once")
    setattr(cls, _MARK, Handler(cls, options))


def _class_hooks(cls: type, options: Options) -> dict[str, Any]:
    if not callable(getattr(cls, "predict", None)):
        raise TypeError(f"class {cls.__name__} needs a predict method: def predict(self, batch)")
    hooks = {}
    for name in HOOKS:
        if getattr(options, name) is not None:
            raise ValueError(f"{name}=… with a class: define it as a method of {cls.__name__}")
        if callable(getattr(cls, name, None)):
            hooks[name] = getattr(cls, name)
    if options.max_batch_size is None and "unbatch" in hooks and "batch" in hooks:
        # LitServe's base class has both; without a batch they are simply not called.
        hooks = {name: hook for name, hook in hooks.items() if name not in ("batch", "unbatch")}
    return hooks


_INSTEAD_OF_YIELD = {
    "setup": "returns the state; what comes after it belongs into teardown",
    "decode_request": "returns one item",
    "batch": "returns the batch",
    "unbatch": "is called for each yield of the function",
    "encode_response": "is called once per output or chunk",
    "teardown": "ends a worker",
}


def _is_async(hook: Any) -> bool:
    """Whether it is `async def`, or an object whose `__call__` is."""
    called = (hook, getattr(hook, "__call__", None))  # noqa: B004 - whether it is callable is not the question
    return any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in called)


def _is_generator(hook: Any) -> bool:
    """Whether calling it makes a generator, plain or async."""
    called = (hook, getattr(hook, "__call__", None))  # noqa: B004
    return any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in called)


def _is_method(cls: type, name: str) -> bool:
    """Whether the first parameter of `cls.name` is the instance."""
    found = inspect.getattr_static(cls, name)
    return hasattr(type(found), "__get__") and not isinstance(found, (staticmethod, classmethod))


def _takes(role: str, hook: Callable[..., Any], options: Options, *, in_class: bool, bound: bool) -> Takes:
    """How a worker calls it; TypeError when it has the wrong number of parameters."""
    anything = inspect.Parameter("data", inspect.Parameter.POSITIONAL_ONLY)
    try:
        every = list(inspect.signature(hook).parameters.values())
    except (TypeError, ValueError):  # some builtins say nothing about themselves
        return Takes(anything)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p for p in every if p.kind in kinds][bound:]
    by_keyword = [p for p in every if p.kind is p.KEYWORD_ONLY]
    # LitServe's; in a function `context` is a name like any other.
    context = in_class and any(p.name == "context" for p in by_keyword + positional[1:])
    given = [p for p in positional if not (context and p.name == "context")]
    required = [p for p in given if p.default is p.empty]
    missing = [p for p in by_keyword if p.default is p.empty and not (context and p.name == "context")]
    with_state = options.setup is not None and not in_class and role != "setup"
    if role == "function":
        least = most = 2 if with_state else 1
    elif role == "teardown":
        least, most = 0, int(with_state)
    else:
        least, most = 1, 2 if with_state else 1
        if not required and (given or any(p.kind is p.VAR_POSITIONAL for p in every)):
            # `f(x=None)`, `f(*items)` and many a library's function take one argument all the same.
            required = given[:1] or [anything]
    if not least <= len(required) <= most or missing:
        raise TypeError(_wrong_arity(role, len(required) + len(missing), options, with_state))
    state = bool(required) if role == "teardown" else len(required) == 2
    return Takes(required[-1] if required else anything, state, context)


def _wrong_arity(role: str, got: int, options: Options, with_state: bool) -> str:
    data = {
        "setup": "the device",
        "decode_request": "the body",
        "batch": "the list of items",
        "unbatch": "the function's output",
        "encode_response": "one output",
        "teardown": "the state",
        "function": "a batch" if options.max_batch_size is not None else "one item",
    }[role]
    taken = "(state, data)" if with_state and role != "teardown" else "(data)"
    if role == "function":
        return (
            f"{options.name}() takes {got} arguments without a default: a handler takes {taken}, "
            f"where data is {data}; pack several inputs into one tuple, dict or Struct"
        )
    return f"{options.name}: {role} takes {got} arguments without a default: it gets {taken}, where data is {data}"


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = inspect.unwrap(function) if not inspect.isclass(function) else function
    if not hasattr(target, "__annotations__"):
        return {}
    try:
        return typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{getattr(function, '__name__', function)!s}(): an annotation names something unknown here ({error}); "
            "define or import it at the top of the module"
        ) from None
