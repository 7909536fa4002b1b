"""Process workers on real GPUs."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.anyio,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

from tests.gpu import handlers
from tidegate import App, HandlerError, WorkerDied


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_model_on_the_gpu_answers_as_it_does_on_the_cpu() -> None:
    model = handlers.load_classifier("cpu")
    rows = np.random.default_rng(0).standard_normal((500, handlers.WIDTH), dtype=np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(rows)).numpy()
    async with App(handlers.classify, worker="process") as app:
        (worker, *_) = app.status()["classify"].workers
        assert worker.device == "cuda:0"
        got = await asyncio.gather(*(app.call("classify", torch.from_numpy(row)) for row in rows))
        assert app.statistics()["classify"].mean_batch_size > 8
    assert np.abs(np.stack([one.numpy() for one in got]) - expected).max() < 1e-3


async def test_an_index_out_of_range_kills_a_worker_and_answers_fifteen_of_sixteen() -> None:
    table = handlers.load_table("cpu")
    async with App(handlers.look_up, worker="process") as app:
        for bad in (0, 7):
            indices = [handlers.VOCABULARY + 5 if place == bad else place for place in range(16)]
            started = time.monotonic()
            got = await asyncio.gather(
                *(app.call("look_up", torch.tensor(index)) for index in indices), return_exceptions=True
            )
            print(
                f"device-side assert: {time.monotonic() - started:.1f} s, {app.status()['look_up'].restarts} restarts"
            )
            for place, answer in enumerate(got):
                if place == bad:
                    assert isinstance(answer, WorkerDied), answer
                    assert "assert" in str(answer).lower()
                else:
                    assert not isinstance(answer, BaseException), answer
                    # The seed makes the same table, on either device.
                    assert answer.shape == (8,)
        assert table.num_embeddings == handlers.VOCABULARY


async def test_a_batch_that_does_not_fit_is_run_in_smaller_ones() -> None:
    async with App(handlers.hungry, worker="process") as app:
        for _ in range(3):
            got = await asyncio.gather(*(app.call("hungry", torch.tensor(float(n))) for n in range(16)))
            assert [float(value) for value in got] == [float(n) for n in range(16)]
        sizes = app.statistics()["hungry"].batch_sizes
        print(f"sizes that ran while 4 GiB were free and an item took half of one: {dict(sizes)}")
        assert app.status()["hungry"].restarts == 0


async def test_items_arrive_in_pinned_memory_where_the_gpu_reads_it_itself() -> None:
    async with App(handlers.arrived, worker="process") as app:
        for size in (100_000, 10_000_000):  # the second needs more shared memory than there was at the start
            answer = await app.call("arrived", torch.ones(size))
            assert answer == {"pinned": True, "sum": size}


async def test_every_gpu_is_used_and_each_worker_sees_its_own_alone() -> None:
    count = torch.cuda.device_count()
    async with App(handlers.where, worker="process") as app:
        assert len(app.status()["where"].workers) == count
        seen = {}
        for _ in range(20 * count):
            for answer in await asyncio.gather(*(app.call("where", np.zeros(1)) for _ in range(4 * count))):
                seen[answer["pid"]] = answer
    assert len(seen) == count
    assert {answer["count"] for answer in seen.values()} == {1}
    assert len({answer["uuid"] for answer in seen.values()}) == count
    for answer in seen.values():
        assert answer["uuid"] in answer["visible"]


async def test_a_gpu_error_of_one_handler_leaves_another_alone() -> None:
    async with App(handlers.look_up, handlers.classify, worker="process") as app:
        calls = [app.call("classify", torch.ones(handlers.WIDTH)) for _ in range(50)]
        bad = app.call("look_up", torch.tensor(10**6))
        *good, died = await asyncio.gather(*calls, bad, return_exceptions=True)
        assert isinstance(died, (WorkerDied, HandlerError))
        assert all(not isinstance(answer, BaseException) for answer in good)
        assert app.status()["classify"].restarts == 0
