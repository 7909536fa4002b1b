"""A batch's way through a handler's hooks, inside a worker: decode, batch, function, unbatch, encode.

Written once, as coroutines: where nothing in a handler is `async def` they never suspend, and a worker drives them
like plain calls.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from tidegate.collate import group_of, rows_of, stack
from tidegate.context import BatchContext, Contexts, RunningItem, running_batch
from tidegate.handler import Handler
from tidegate.sentinels import END, SKIP, Sentinel
from tidegate.workers.protocol import SetupArgument
from tidegate_batching import Batch, BatchSizeMismatch, HandlerError, InvalidInput, TidegateError
from tidegate_batching.errors import from_foreign

__all__ = ["Execution", "Prepared", "Work", "drive"]

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]
"""A bound hook or function: its argument, and the dict that a `context` parameter gets."""


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for; where it waits all the same, it gets a RuntimeError."""
    try:
        coroutine.send(None)
        while True:
            # Raised where the hook was called, so that it fails what any exception of that hook would fail.
            coroutine.throw(RuntimeError("a plain function returned an awaitable: write it as `async def`"))
    except StopIteration as stop:
        result: T = stop.value
        return result


class Work(Protocol):
    """A batch as its execution sees it, in the service's process or in a worker's."""

    @property
    def values(self) -> list[Any]: ...
    @property
    def items(self) -> Sequence[RunningItem]: ...


class Prepared:
    """A batch whose items are decoded; an exception instance in an item's place has failed already."""

    __slots__ = ("_inputs", "batch", "context", "stacked")

    def __init__(self, batch: Work, context: BatchContext) -> None:
        self.batch = batch
        # Where the values came as one array already, that is the function's argument as it is, and nobody looks at
        # the single ones.
        self.stacked: Any = getattr(batch, "stacked", None)
        self.context = context
        self._inputs: list[Any] | None = None

    @property
    def inputs(self) -> list[Any]:
        """The items, as they were sent or as they were decoded."""
        if self._inputs is None:
            self._inputs = list(self.batch.values)
        return self._inputs

    def alive(self) -> list[int]:
        """The places of the items that are still to be run."""
        if self.stacked is not None:
            return list(range(len(self.batch.items)))
        return [i for i, value in enumerate(self.inputs) if not isinstance(value, BaseException)]

    def part(self, places: list[int]) -> BatchContext:
        """The batch as the function sees it that gets the items in these places."""
        items = self.context.items
        if len(places) == len(items):
            return self.context
        return BatchContext(self.context.device, [items[place] for place in places])


class Execution:
    """A handler set up on one device.

    `decode` and `encode` may run on another thread than the rest, `start`, `run`, `chunks` and `stop` on one.
    """

    def __init__(self, handler: Handler[..., Any], device: SetupArgument) -> None:
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
        self._scoped = False

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
        function = self._instance.predict if self._handler.is_class else self._handler.function
        self._function = self._bind("function", function)
        await self._warm_up()

    async def stop(self) -> None:
        """Run `teardown`; raises what it raises."""
        if self._options.teardown is not None:
            hook = self._instance.teardown if self._handler.is_class else self._options.teardown
            await _awaited(hook(*self._state) if self._handler.takes("teardown").state else hook())

    # ------------------------------------------------------------------ one batch

    async def decode(self, batch: Work) -> Prepared:
        """The items as the function's batch will see them; a hook's failure is its item's alone."""
        context = BatchContext(self._device, Contexts(batch.items))
        prepared = Prepared(batch, context)
        if self._decode is None:
            return prepared
        running_batch.set(context)
        for i, item in enumerate(context.items):
            if isinstance(prepared.inputs[i], BaseException):
                continue  # it could not be brought here
            try:
                prepared.inputs[i] = await _awaited(self._decode(prepared.inputs[i], item.scope))
            except BaseException as error:  # noqa: BLE001 - what a hook raises for one item is that item's answer
                prepared.inputs[i] = _invalid(error)
        return prepared

    async def run(self, prepared: Prepared) -> Sequence[Any]:
        """One output, or exception instance, per item; raises what the batch hooks or the function raise.

        What it gives may lie in the function's own memory: it is to be used before the function runs again.
        """
        groups = self._groups(prepared)
        if len(groups) == 1 and len(groups[0]) == len(prepared.batch.items):
            return await self._run_group(prepared, groups[0])
        outputs = list(prepared.inputs)
        for places in groups:
            try:
                results = await self._run_group(prepared, places)
            except BaseException as error:
                # The batch's halves would be run to find out what is known here already.
                if len(groups) == 1 or (len(places) > 1 and self._options.isolate_errors):
                    raise
                results = [error] * len(places)
            for place, output in zip(places, results, strict=True):
                outputs[place] = output
        return outputs

    async def encode(self, prepared: Prepared, outputs: Sequence[Any]) -> Sequence[Any]:
        """The outputs as the caller will see them; a hook's failure is its item's alone."""
        if self._encode is None:
            return outputs
        outputs = list(outputs)
        running_batch.set(prepared.context)
        for i, item in enumerate(prepared.context.items):
            if isinstance(outputs[i], (BaseException, Sentinel)):
                continue
            try:
                outputs[i] = await _awaited(self._encode(outputs[i], item.scope))
            except BaseException as error:  # noqa: BLE001 - what a hook raises for one item is that item's answer
                outputs[i] = error
        return outputs

    async def chunks(self, prepared: Prepared) -> AsyncGenerator[list[Any], None]:
        """For each step of a stream one chunk, END, SKIP or exception instance per item.

        Ends when the generator does or when nobody is left to read.
        """
        batch, size = prepared.batch, len(prepared.batch.items)
        if len(prepared.alive()) < size:
            yield [value if isinstance(value, BaseException) else SKIP for value in prepared.inputs]
        for places in self._groups(prepared):
            unfinished = {place for place in places if not batch.items[place].cancelled}
            if not unfinished:
                continue
            context = prepared.part(places)
            running_batch.set(context)
            argument = await self._argument(prepared, places)
            generator = self._function(argument, self._scopes(prepared, places))
            async with aclosing(_steps(generator)) as steps:
                async for step in steps:
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
                    # The chunks' encode hook may have run in between.
                    running_batch.set(context)

    # ------------------------------------------------------------------ pieces

    def _groups(self, prepared: Prepared) -> list[list[int]]:
        """The places that run together: all, unless a hook of the user's lets arrays of several shapes into a batch."""
        alive = prepared.alive()
        mixed = self._decode is not None or self._options.group_by is not None
        if not mixed or self._batch is not None or not self._handler.batched or prepared.stacked is not None:
            return [alive] if alive else []
        groups: dict[Any, list[int]] = {}
        for place in alive:
            groups.setdefault(group_of(prepared.inputs[place]), []).append(place)
        return list(groups.values())

    async def _run_group(self, prepared: Prepared, places: list[int]) -> Sequence[Any]:
        running_batch.set(prepared.part(places))
        argument = await self._argument(prepared, places)
        output = await _awaited(self._function(argument, self._scopes(prepared, places)))
        return await self._one_each(output, len(places))

    async def _argument(self, prepared: Prepared, places: list[int]) -> Any:
        if prepared.stacked is not None and len(places) == len(prepared.batch.items):
            return prepared.stacked
        items = [prepared.inputs[place] for place in places]
        if not self._handler.batched:
            return items[0]
        if self._batch is not None:
            return await _awaited(self._batch(items, self._scopes(prepared, places)))
        return stack(items, self._options.dims[0])

    async def _one_each(self, output: Any, size: int) -> Sequence[Any]:
        if not self._handler.batched:
            return [output]
        if self._unbatch is not None:
            outputs: Sequence[Any] = list(await _awaited(self._unbatch(output, None)))
        else:
            outputs = rows_of(output, self._options.dims[1])
        if len(outputs) != size:
            raise BatchSizeMismatch(size, len(outputs))
        return outputs

    def _scopes(self, prepared: Prepared, places: list[int]) -> Any:
        """What a `context` parameter gets of these items; nobody asks for it if there is no such parameter."""
        if not self._scoped:
            return None
        scopes = [prepared.context.items[place].scope for place in places]
        return scopes if self._handler.batched else scopes[0]

    async def _warm_up(self) -> None:
        example = self._options.warmup
        if example is None:
            return
        nothing = running_batch.set(BatchContext(self._device, []))
        size = 0
        try:
            example = self._handler.codec.adopt(example() if callable(example) else example)
            for size in sorted({1, self._options.max_batch_size or 1}):
                for output in await self._rehearse([example] * size):
                    if isinstance(output, BaseException):
                        raise output
        except Exception as error:
            raise _not_warm(size, error) from error
        finally:
            running_batch.reset(nothing)

    async def _rehearse(self, values: list[Any]) -> Sequence[Any]:
        """The outputs, or the first chunks, for a batch that nobody waits for."""
        prepared = await self.decode(Batch.of(values))
        if not self._handler.streams:
            return await self.encode(prepared, await self.run(prepared))
        async with aclosing(self.chunks(prepared)) as rows:
            async for row in rows:
                return await self.encode(prepared, row)
        return []

    # ------------------------------------------------------------------ binding

    def _bound(self, name: str) -> Hook | None:
        hook = getattr(self._options, name)
        if hook is None:
            return None
        return self._bind(name, getattr(self._instance, name) if self._handler.is_class else hook)

    def _bind(self, role: str, hook: Callable[..., Any]) -> Hook:
        """The hook as a function of (argument, scope): the state goes first if it has a place for it."""
        takes = self._handler.takes(role)
        state = self._state if takes.state else ()
        if takes.context:
            self._scoped = True
            return lambda argument, scope: hook(*state, argument, context=scope)
        return lambda argument, scope: hook(*state, argument)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def _steps(generator: Any) -> AsyncGenerator[Any, None]:
    """What a generator, plain or async, yields; closed with it."""
    try:
        if hasattr(generator, "__aiter__"):
            async for step in generator:
                yield step
        else:
            for step in generator:
                yield step
    finally:
        if hasattr(generator, "aclose"):
            await generator.aclose()
        elif hasattr(generator, "close"):
            generator.close()


def _not_warm(size: int, error: Exception) -> HandlerError:
    """What happened to a batch of that size, or for 0 to the example itself; `stage` tells it from a failed `setup`."""
    known = error if isinstance(error, HandlerError) else HandlerError.wrap(error)
    what = f"a batch of {size}" if size else "the example"
    failed = HandlerError(f"{what}: {known.type_name}", known.text, known.traceback)
    vars(failed)["stage"] = "warm-up"  # whatever is there crosses between processes
    return failed


def _invalid(error: BaseException) -> TidegateError:
    """What decode_request raised, as the caller's mistake unless it says otherwise."""
    known = from_foreign(error)
    if not isinstance(known, HandlerError):
        return known
    invalid = InvalidInput(f"{type(error).__name__}: {known.text}" if known.text else type(error).__name__)
    invalid.__cause__ = error
    return invalid
