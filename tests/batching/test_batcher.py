"""The shell: callers, waiters and slots on both event loops."""

import anyio
import pytest

from tidegate_batching import Batch, Batcher, Closed, HandlerError, Policy

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def double(values: list[int]) -> list[int]:
    return [2 * value for value in values]


async def test_callers_that_arrive_together_share_a_batch_and_get_their_own_answers() -> None:
    answers: dict[int, int] = {}
    async with Batcher[int, int](Policy(max_batch_size=16)) as batcher:
        batcher.add_function(double)

        async def ask(value: int) -> None:
            answers[value] = await batcher.submit(value)

        async with anyio.create_task_group() as tasks:
            for value in range(16):
                tasks.start_soon(ask, value)
        statistics = batcher.statistics()
    assert answers == {value: 2 * value for value in range(16)}
    assert statistics.batch_sizes == {16: 1}
    assert statistics.outcomes == {"ok": 16}


async def test_a_handlers_exception_reaches_the_caller_as_handler_error_with_its_cause() -> None:
    async def fail(values: list[int]) -> list[int]:
        raise LookupError("no such speaker")

    async with Batcher[int, int](Policy()) as batcher:
        batcher.add_function(fail)
        with pytest.raises(HandlerError, match="LookupError: no such speaker") as caught:
            await batcher.submit(1)
    assert isinstance(caught.value.__cause__, LookupError)


async def test_leaving_answers_what_is_in_and_refuses_what_comes() -> None:
    begun = anyio.Event()
    started: list[Batch] = []
    answers: list[int] = []

    def start(batch: Batch) -> None:
        started.append(batch)
        begun.set()

    async with anyio.create_task_group() as tasks, Batcher[int, int](Policy()) as batcher:
        batcher.add_slot(start)

        async def ask() -> None:
            answers.append(await batcher.submit(1))

        async def finish() -> None:
            with pytest.raises(Closed):
                await batcher.submit(2)
            started[0].complete([7])

        tasks.start_soon(ask)
        await begun.wait()
        tasks.start_soon(finish)
    assert answers == [7]


async def test_a_cancelled_waiter_leaves_the_queue_before_it_runs() -> None:
    started: list[Batch] = []
    async with Batcher[int, int](Policy(max_batch_size=2, batch_timeout=60)) as batcher:
        batcher.add_slot(started.append)
        with anyio.move_on_after(0):
            await batcher.submit(1)
    assert not started
    assert batcher.statistics().outcomes == {"cancelled": 1}
