"""Streams: chunks in order, bounded, ending with their item, on both event loops."""

import anyio
import pytest

from tidegate_batching import Batch, Batcher, HandlerError, Policy, SlowReader, State

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def begun(batches: list[Batch]) -> Batch:
    await anyio.wait_all_tasks_blocked()
    return batches[-1]


async def test_chunks_arrive_in_order_and_the_stream_ends_with_the_batch() -> None:
    batches: list[Batch] = []
    async with Batcher[int, int](Policy(max_batch_size=2, batch_timeout=0)) as batcher:
        batcher.add_slot(batches.append)
        first, second = (batcher.stream(batcher.item(value)) for value in (1, 2))
        batch = await begun(batches)
        for step in range(3):
            batch.chunk(0, f"a{step}")
            batch.chunk(1, f"b{step}")
        batch.complete([None, None])
        assert [chunk async for chunk in first] == ["a0", "a1", "a2"]
        assert [chunk async for chunk in second] == ["b0", "b1", "b2"]


async def test_a_reader_waits_for_chunks_that_have_not_come() -> None:
    batches: list[Batch] = []
    got: list[int] = []
    async with Batcher[int, int](Policy(batch_timeout=0)) as batcher:
        batcher.add_slot(batches.append)
        stream = batcher.stream(batcher.item(0))
        batch = await begun(batches)
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                async for chunk in stream:
                    got.append(chunk)

            tasks.start_soon(read)
            for step in range(3):
                await anyio.wait_all_tasks_blocked()
                assert got == list(range(step))
                batch.chunk(0, step)
            await anyio.wait_all_tasks_blocked()
            batch.complete([None])
    assert got == [0, 1, 2]


async def test_an_item_that_ends_early_leaves_its_neighbours_running() -> None:
    batches: list[Batch] = []
    async with Batcher[int, int](Policy(max_batch_size=2, batch_timeout=0)) as batcher:
        batcher.add_slot(batches.append)
        first, second = (batcher.stream(batcher.item(value)) for value in (1, 2))
        batch = await begun(batches)
        batch.chunk(0, "only")
        batch.finish(0)
        batch.chunk(0, "too late")
        assert [chunk async for chunk in first] == ["only"]
        batch.chunk(1, "on")
        batch.complete([None, None])
        assert [chunk async for chunk in second] == ["on"]


async def test_a_failure_after_the_first_chunk_is_raised_after_what_was_sent() -> None:
    batches: list[Batch] = []
    async with Batcher[int, int](Policy(batch_timeout=0)) as batcher:
        batcher.add_slot(batches.append)
        stream = batcher.stream(batcher.item(1))
        batch = await begun(batches)
        batch.chunk(0, "sent")
        batch.complete(ValueError("halfway"))
        assert await anext(stream) == "sent"
        with pytest.raises(HandlerError, match="halfway"):
            await anext(stream)


async def test_a_failure_before_any_chunk_is_isolated_and_the_innocent_streams_run_again() -> None:
    batches: list[Batch] = []
    async with Batcher[int, int](Policy(max_batch_size=2, batch_timeout=0)) as batcher:
        batcher.add_slot(batches.append)
        bad, good = (batcher.stream(batcher.item(value)) for value in ("bad", "good"))  # type: ignore[arg-type]
        (await begun(batches)).complete(ValueError("poison"))
        for _ in range(2):
            batch = await begun(batches)
            if batch.values == ["bad"]:
                batch.complete(ValueError("poison"))
            else:
                batch.chunk(0, "fine")
                batch.complete([None])
        assert [chunk async for chunk in good] == ["fine"]
        with pytest.raises(HandlerError, match="poison"):
            await anext(bad)


async def test_the_first_chunk_lifts_the_deadline() -> None:
    batches: list[Batch] = []
    async with Batcher[int, int](Policy(batch_timeout=0)) as batcher:
        batcher.add_slot(batches.append)
        stream = batcher.stream(batcher.item(1, timeout=0.01))
        batch = await begun(batches)
        batch.chunk(0, 1)
        await anyio.sleep(0.02)  # past the deadline
        batch.chunk(0, 2)
        batch.complete([None])
        assert [chunk async for chunk in stream] == [1, 2]


async def test_a_reader_that_leaves_takes_its_item_out_and_the_batch_knows() -> None:
    batches: list[Batch] = []
    async with Batcher[int, int](Policy(max_batch_size=2, batch_timeout=0)) as batcher:
        batcher.add_slot(batches.append)
        first, second = (batcher.stream(batcher.item(value)) for value in (1, 2))
        batch = await begun(batches)
        await first.aclose()
        assert [item.cancelled for item in batch.items] == [True, False]
        assert [batch.abandoned] == [False]
        async with second:
            pass
        assert [batch.abandoned] == [True]
        batch.complete([None, None])
    assert batcher.statistics().outcomes == {"cancelled": 2}


async def test_a_full_buffer_is_reported_and_drains() -> None:
    batches: list[Batch] = []
    drained: list[int] = []
    async with Batcher[int, int](Policy(batch_timeout=0)) as batcher:
        batcher.add_slot(batches.append)
        stream = batcher.stream(batcher.item(1))
        batch = await begun(batches)
        assert all(batch.chunk(0, step) for step in range(255))
        assert not batch.chunk(0, 255)
        batch.when_drained(0, lambda: drained.append(1))
        for step in range(127):
            assert await anext(stream) == step
            assert sum(drained) == 0
        assert await anext(stream) == 127
        assert sum(drained) == 1
        assert not batch.chunk(0, "large", nbytes=1 << 20)
        batch.finish(0, SlowReader())
        batch.complete([None])
        rest = [await anext(stream) for _ in range(129)]
        assert rest == [*range(128, 256), "large"]
        with pytest.raises(SlowReader):
            await anext(stream)


async def test_a_cancelled_reader_can_go_on_reading() -> None:
    batches: list[Batch] = []
    async with Batcher[int, int](Policy(batch_timeout=0)) as batcher:
        batcher.add_slot(batches.append)
        stream = batcher.stream(batcher.item(1))
        batch = await begun(batches)
        with anyio.move_on_after(0.001):
            await anext(stream)
        assert batch.items[0].state is State.RUNNING
        batch.chunk(0, "late")
        batch.complete([None])
        assert [chunk async for chunk in stream] == ["late"]
