"""A batch's way through a handler's hooks, inside a worker: decode, batch, function, unbatch, encode.

Written once, as coroutines: where nothing in a handler is `async def` they never suspend, and a worker drives them
like plain calls.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from tidegate.collate import group_of, split, stack
from tidegate.context import BatchContext, ItemContext, running_batch
from tidegate.handler import Handler
from tidegate.sentinels import END, SKIP, Sentinel
from tidegate_batching import Batch, BatchSizeMismatch, InvalidInput, TidegateError
from tidegate_batching.errors import from_foreign

__all__ = ["Execution", "Prepared", "drive"]

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]
"""A bound hook or function: its argument, and the dict that a `context` parameter gets."""


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a plain function returned an awaitable: write it as `async def`")


class Prepared:
    """A batch whose items are decoded; an exception instance in an item's place has failed already."""

    __slots__ = ("batch", "context", "inputs")

    def __init__(self, batch: Batch, context: BatchContext, inputs: list[Any]) -> None:
        self.batch = batch
        self.context = context
        self.inputs = inputs

    def alive(self) -> list[int]:
        """The places of the items that are still to be run."""
        return [i for i, value in enumerate(self.inputs) if not isinstance(value, BaseException)]


class Execution:
    """A handler set up on one device.

    `decode` and `encode` may run on another thread than the rest, `start`, `run`, `chunks` and `stop` on one.
    """

    def __init__(self, handler: Handler[..., Any], device: str) -> None:
        self._handler = handler
        self._options = handler.options
        self._device = device
        self._state: tuple[Any, ...] = ()
        self._instance: Any = None
        self._decode: Hook | None = None
        self._encode: Hook | None = None
        self._batch: Hook | None = None
        self._unbatch: Hook | None = None
        self._function: Hook

    # ------------------------------------------------------------------ lifetime

    async def start(self) -> None:
        """Run `setup`, bind the hooks, warm up; raises what they raise."""
        options = self._options
        if self._handler.is_class:
            self._instance = self._handler.target()
            self._instance.device = self._device
        if options.setup is not None:
            hook = self._instance.setup if self._handler.is_class else options.setup
            state = await _awaited(hook(self._device))
            if not self._handler.is_class:
                self._state = (state,)
        self._decode = self._bound("decode_request")
        self._encode = self._bound("encode_response")
        self._batch = self._bound("batch")
        self._unbatch = self._bound("unbatch")
        self._function = self._bind(self._instance.predict if self._handler.is_class else self._handler.function)
        await self._warm_up()

    async def stop(self) -> None:
        """Run `teardown`; raises what it raises."""
        if self._options.teardown is not None:
            hook = self._instance.teardown if self._handler.is_class else self._options.teardown
            await _awaited(hook(*self._state) if _required(hook) else hook())

    # ------------------------------------------------------------------ one batch

    async def decode(self, batch: Batch) -> Prepared:
        """The items as the function's batch will see them; a hook's failure is its item's alone."""
        context = BatchContext(self._device, [ItemContext(item) for item in batch.items])
        prepared = Prepared(batch, context, batch.values)
        if self._decode is None:
            return prepared
        running_batch.set(context)
        for i, item in enumerate(context.items):
            try:
                prepared.inputs[i] = await _awaited(self._decode(prepared.inputs[i], item.scope))
            except BaseException as error:  # noqa: BLE001 - what a hook raises for one item is that item's answer
                prepared.inputs[i] = _invalid(error)
        return prepared

    async def run(self, prepared: Prepared) -> list[Any]:
        """One output, or exception instance, per item; raises what the batch hooks or the function raise."""
        running_batch.set(prepared.context)
        outputs = list(prepared.inputs)
        for places in self._groups(prepared):
            for place, output in zip(places, await self._run_group(prepared, places), strict=True):
                outputs[place] = output
        return outputs

    async def encode(self, prepared: Prepared, outputs: list[Any]) -> list[Any]:
        """The outputs as the caller will see them; a hook's failure is its item's alone."""
        if self._encode is None:
            return outputs
        running_batch.set(prepared.context)
        for i, item in enumerate(prepared.context.items):
            if isinstance(outputs[i], (BaseException, Sentinel)):
                continue
            try:
                outputs[i] = await _awaited(self._encode(outputs[i], item.scope))
            except BaseException as error:  # noqa: BLE001 - what a hook raises for one item is that item's answer
                outputs[i] = error
        return outputs

    async def chunks(self, prepared: Prepared) -> AsyncIterator[list[Any]]:
        """For each step of a stream one chunk, END, SKIP or exception instance per item.

        Ends when the generator does or when nobody is left to read.
        """
        running_batch.set(prepared.context)
        batch, size = prepared.batch, len(prepared.inputs)
        failed = [value if isinstance(value, BaseException) else SKIP for value in prepared.inputs]
        if len(prepared.alive()) < size:
            yield failed
        for places in self._groups(prepared):
            unfinished = set(places)
            argument = await self._argument(prepared, places)
            generator = self._function(argument, self._scopes(prepared, places))
            try:
                async for step in _steps(generator):
                    chunks = await self._one_each(step, len(places))
                    row: list[Any] = [SKIP] * size
                    for place, chunk in zip(places, chunks, strict=True):
                        if place not in unfinished:
                            continue
                        row[place] = chunk
                        if chunk is END or isinstance(chunk, BaseException):
                            unfinished.discard(place)
                    yield row
                    unfinished = {place for place in unfinished if not batch.items[place].cancelled}
                    if not unfinished:
                        break
            finally:
                await _close(generator)

    # ------------------------------------------------------------------ pieces

    def _groups(self, prepared: Prepared) -> list[list[int]]:
        """The places that run together: all, unless the user's decode_request gave arrays of several shapes."""
        alive = prepared.alive()
        if self._decode is None or self._batch is not None or not self._handler.batched:
            return [alive] if alive else []
        groups: dict[Any, list[int]] = {}
        for place in alive:
            groups.setdefault(group_of(prepared.inputs[place]), []).append(place)
        return list(groups.values())

    async def _run_group(self, prepared: Prepared, places: list[int]) -> list[Any]:
        argument = await self._argument(prepared, places)
        output = await _awaited(self._function(argument, self._scopes(prepared, places)))
        return await self._one_each(output, len(places))

    async def _argument(self, prepared: Prepared, places: list[int]) -> Any:
        items = [prepared.inputs[place] for place in places]
        if not self._handler.batched:
            return items[0]
        if self._batch is not None:
            return await _awaited(self._batch(items, self._scopes(prepared, places)))
        return stack(items, self._options.dims[0])

    async def _one_each(self, output: Any, size: int) -> list[Any]:
        if not self._handler.batched:
            return [output]
        if self._unbatch is not None:
            outputs = list(await _awaited(self._unbatch(output, None)))
        else:
            outputs = split(output, self._options.dims[1])
        if len(outputs) != size:
            raise BatchSizeMismatch(size, len(outputs))
        return outputs

    def _scopes(self, prepared: Prepared, places: list[int]) -> Any:
        scopes = [prepared.context.items[place].scope for place in places]
        return scopes if self._handler.batched else scopes[0]

    async def _warm_up(self) -> None:
        example = self._options.warmup
        if example is None:
            return
        example = example() if callable(example) else example
        for size in sorted({1, self._options.max_batch_size or 1}):
            prepared = await self.decode(Batch.of([example] * size))
            for value in prepared.inputs:
                if isinstance(value, BaseException):
                    raise value
            if self._handler.streams:
                async for row in self.chunks(prepared):
                    await self.encode(prepared, row)
                    break
            else:
                await self.encode(prepared, await self.run(prepared))

    # ------------------------------------------------------------------ binding

    def _bound(self, name: str) -> Hook | None:
        hook = getattr(self._options, name)
        if hook is None:
            return None
        return self._bind(getattr(self._instance, name) if self._handler.is_class else hook)

    def _bind(self, hook: Callable[..., Any]) -> Hook:
        """The hook as a function of (argument, scope): the state goes first if it has a place for it."""
        state = self._state if _required(hook) >= 2 else ()
        if _wants_context(hook):
            return lambda argument, scope: hook(*state, argument, context=scope)
        return lambda argument, scope: hook(*state, argument)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def _steps(generator: Any) -> AsyncIterator[Any]:
    if hasattr(generator, "__aiter__"):
        async for step in generator:
            yield step
    else:
        for step in generator:
            yield step


async def _close(generator: Any) -> None:
    if hasattr(generator, "aclose"):
        await generator.aclose()
    elif hasattr(generator, "close"):
        generator.close()


def _wants_context(hook: Callable[..., Any]) -> bool:
    try:
        return "context" in inspect.signature(hook).parameters
    except (ValueError, TypeError):
        return False


def _required(hook: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(hook).parameters.values()
    except (ValueError, TypeError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return 2
    return sum(p.kind in kinds and p.default is p.empty and p.name != "context" for p in parameters)


def _invalid(error: BaseException) -> TidegateError:
    """What decode_request raised, as the caller's mistake unless it says otherwise."""
    known = from_foreign(error)
    if type(known).__name__ != "HandlerError":
        return known
    invalid = InvalidInput(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    invalid.__cause__ = error
    return invalid
