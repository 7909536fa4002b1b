"""Workers in processes of their own: what only they can suffer, and what only they can promise."""

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import psutil
import pytest

from tidegate import (
    App,
    HandlerError,
    InvalidInput,
    OutOfMemory,
    SetupFailed,
    WorkerDied,
    serve,
)
from tidegate.context import RequestInfo
from tidegate.devices import Device, DeviceManager
from tidegate.discovery import CPU
from tidegate.workers import frames
from tidegate.workers import process as processes
from tidegate.workers import replica as replicas
from tidegate.workers.process import ProcessWorker
from tidegate.workers.reference import reference_to
from tidegate.workers.shared_memory import SharedMemoryFull
from tidegate_batching import Batch, RunTimeout, Unavailable

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")]


@asynccontextmanager
async def serving(*handlers: Any, worker: Any = "process", **options: Any) -> AsyncIterator[App]:
    async with App(*handlers, worker=worker, devices=DeviceManager([CPU]), **options) as app:
        yield app


async def outcomes(app: App, name: str, values: Any) -> list[Any]:
    with anyio.fail_after(60):
        return await asyncio.gather(*(app.call(name, value) for value in values), return_exceptions=True)


async def fifteen_right(app: App, name: str, order: Any) -> Any:
    answers = await outcomes(app, name, [order if n == 5 else n for n in range(16)])
    culprit = answers.pop(5)
    assert answers == [n for n in range(16) if n != 5]
    return culprit


def in_dev_shm(pid: int) -> list[str]:
    """What a process has open or mapped there: other people use it too."""
    maps = Path(f"/proc/{pid}/maps").read_text().split()
    links = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return [name for name in (*maps, *links) if name.startswith("/dev/shm")]


class Belongings:
    """What this process has open, mapped and running."""

    def __init__(self) -> None:
        gc.collect()
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.named = in_dev_shm(os.getpid())
        self.mapped = Path("/proc/self/maps").read_text().count("memfd:tidegate")
        self.children = {child.pid for child in psutil.Process().children(recursive=True)}

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other)

    def __repr__(self) -> str:
        return repr(vars(self))


@pytest.fixture
def nothing_left(anyio_backend: str) -> Iterator[None]:
    """Whatever a test does to its workers, all that was theirs is gone when it ends."""
    before = Belongings()
    yield
    assert Belongings() == before


pytestmark.append(pytest.mark.usefixtures("nothing_left"))


# ---------------------------------------------------------------------- deaths


@pytest.mark.parametrize(
    ("order", "told"), [(["exit", 3], "exited with status 3"), (["segfault"], "was ended by SIGSEGV")], ids=str
)
async def test_the_one_input_that_ends_its_worker_dies_alone_and_fifteen_are_right(
    handlers: Any, order: Any, told: str
) -> None:
    async with serving(handlers.sixteen) as app:
        culprit = await fifteen_right(app, "sixteen", order)
        assert isinstance(culprit, WorkerDied)
        assert culprit.detail == f"the worker's process {told}"
        assert culprit.code == "worker-died"
        # Once with the others, once alone.
        assert app.status()["sixteen"].restarts == 2
        assert app.ready
        assert app.alive


async def test_a_run_that_takes_too_long_ends_its_worker_and_fifteen_are_right(handlers: Any) -> None:
    async with serving(handlers.timed) as app:
        for order in (["sleep", 1000], ["spin"]):
            culprit = await fifteen_right(app, "timed", order)
            assert isinstance(culprit, RunTimeout)
            assert culprit.code == "run-timeout"
            assert culprit.detail == "the batch ran for longer than max_run_time=0.5 s"
        assert app.status()["timed"].restarts == 4
        assert app.alive


@pytest.mark.parametrize("name", ["sixteen", "in_place"])
async def test_an_error_that_poisons_the_gpu_ends_its_worker_and_fifteen_are_right(handlers: Any, name: str) -> None:
    async with serving(getattr(handlers, name)) as app:
        before = app.status()[name].workers[0].pid
        poison = "CUDA error: device-side assert triggered"
        culprit = await fifteen_right(app, name, ["fail", "RuntimeError", poison])
        assert isinstance(culprit, WorkerDied)
        assert poison in culprit.detail
        assert app.status()[name].workers[0].pid != before


async def test_what_a_library_does_to_the_sockets_ends_that_worker_only(handlers: Any) -> None:
    async with serving(handlers.one) as app:
        with pytest.raises(WorkerDied, match="makes no sense"):
            await app.call("one", ["junk"])
        assert await app.call("one", 1) == 1


async def test_without_isolation_nothing_runs_twice_also_after_a_death(handlers: Any, until: Any) -> None:
    ended = handlers.sixteen.override(isolate_errors=False)
    async with serving(ended) as app:
        answers = await outcomes(app, "sixteen", [["exit", 3] if n == 5 else n for n in range(16)])
        assert {type(answer) for answer in answers} == {WorkerDied}
        await until(lambda: app.status()["sixteen"].restarts == 1)


async def test_a_worker_that_dies_while_it_is_idle_is_replaced(handlers: Any, until: Any) -> None:
    async with serving(handlers.one) as app:
        before = app.status()["one"].workers[0].pid
        os.kill(before, signal.SIGKILL)
        await until(lambda: app.status()["one"].workers[0].state == "restarting")
        assert not app.ready
        assert app.alive
        assert await app.call("one", ["pid"]) != before
        assert app.ready


async def test_the_process_that_a_worker_left_behind_keeps_no_batch_waiting(handlers: Any) -> None:
    async with serving(handlers.one) as app:
        # It holds the worker's sockets open.
        pid = await app.call("one", ["grandchild"])
        os.kill(app.status()["one"].workers[0].pid, signal.SIGKILL)
        assert await app.call("one", 1) == 1
        assert app.status()["one"].restarts == 1
        os.kill(pid, signal.SIGKILL)


async def test_a_program_that_a_worker_started_ends_with_it_and_can_be_terminated_before(
    handlers: Any, until: Any
) -> None:
    async with serving(handlers.one) as app:
        assert await app.call("one", ["terminated program"]) == -signal.SIGTERM
        program = psutil.Process(await app.call("one", ["started program"]))
        assert set(await app.call("one", ["inherited"])) <= {"0", "1", "2", "3"}
        os.kill(app.status()["one"].workers[0].pid, signal.SIGKILL)
        assert await app.call("one", 1) == 1
        await until(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE)


async def test_a_thread_that_outlives_its_time_is_given_up(handlers: Any) -> None:
    async with serving(handlers.timed, worker="thread", drain_timeout=0.0) as app:
        for error in await outcomes(app, "timed", [["meet", 1] if n == 99 else ["sleep", 1.0] for n in range(16)]):
            assert isinstance(error, RunTimeout)
        assert not app.alive
        assert not app.ready
        assert app.status()["timed"].workers[0].state == "lost"
        failure = await asyncio.wait_for(app.failure, 10)
        assert str(failure) == "handler 'timed' has no worker left: RunTimeout: " + RunTimeout(0.5).detail
        with pytest.raises(Unavailable):
            await app.call("timed", 1)
    # Should it ever come back, it ends.
    for thread in threading.enumerate():
        if thread.name == "tidegate-timed-cpu":
            await anyio.to_thread.run_sync(thread.join, 20)
            assert not thread.is_alive()


async def test_a_poisoned_thread_is_given_up(handlers: Any) -> None:
    async with serving(handlers.one, worker="thread") as app:
        with pytest.raises(WorkerDied, match="the GPU's context is lost"):
            await app.call("one", ["fail", "RuntimeError", "CUDA error: an illegal memory access was encountered"])
        assert not app.alive
        assert "illegal memory access" in str(await asyncio.wait_for(app.failure, 10))


# ---------------------------------------------------------------------- starts


def echo(state: Any, x: Any) -> Any:
    return x


def sleeps(device: str) -> None:
    time.sleep(1.0)


def sleeps_long(device: str) -> None:
    time.sleep(1000.0)


def leaves(device: str) -> None:
    raise SystemExit("no licence")


def exits(device: str) -> None:
    os._exit(7)


def crashes(device: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("setup", "told"),
    [
        (leaves, "SystemExit: no licence"),
        (exits, "the worker's process exited with status 7"),
        (crashes, "the worker's process was ended by SIGSEGV"),
    ],
)
async def test_a_setup_that_ends_its_process_fails_the_start(setup: Any, told: str) -> None:
    handler = serve(name="f", setup=setup)(echo)
    with pytest.raises(SetupFailed, match=told), anyio.fail_after(30):
        async with serving(handler):
            raise AssertionError("must not start")


async def test_a_handler_that_has_gone_from_its_file_fails_the_start(tmp_path: Path, handlers: Any) -> None:
    reference = reference_to(handlers.one)
    worker = ProcessWorker(handlers.one, _changed(reference, variable="nobody"), "cpu", {})
    with pytest.raises(HandlerError, match="has no handler called 'nobody'"), anyio.fail_after(30):
        await worker.start(lambda error: None)
    await worker.stop()


def _changed(reference: Any, **changes: Any) -> Any:
    return type(reference)(**{name: getattr(reference, name) for name in reference.__struct_fields__} | changes)


async def test_an_interpreter_that_is_not_there_fails_the_start(handlers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(SetupFailed, match="No such file"), anyio.fail_after(30):
        async with serving(handlers.one):
            raise AssertionError("must not start")


async def test_a_start_that_is_given_up_leaves_nothing(handlers: Any) -> None:
    handler = serve(name="f", setup=sleeps_long)(echo)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            async with serving(handlers.one, handler):
                raise AssertionError("must not start")


@pytest.mark.parametrize("turns", range(6))
async def test_a_start_may_be_given_up_at_any_moment(handlers: Any, turns: int) -> None:
    worker = ProcessWorker(handlers.one, reference_to(handlers.one), "cpu", {})
    starting = asyncio.ensure_future(worker.start(lambda error: None))
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    worker.kill()
    with anyio.fail_after(10):
        await worker.stop()
    # The transports close in the loop's next turns.
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_worker_that_dies_as_soon_as_it_is_ready_is_not_taken_for_a_live_one(tmp_path: Path) -> None:
    flag = tmp_path / "lived"

    def load(device: str) -> None:
        if not flag.exists():
            flag.write_text("once")
            threading.Timer(0.05, os._exit, [5]).start()

    slow = serve(name="slow", setup=sleeps)(echo)
    dying = serve(name="dying", setup=load)(echo)
    # It is dead before the other handler has started, and so before there is a batcher.
    async with serving(dying, slow) as app:
        with anyio.fail_after(30):
            assert await app.call("dying", 1) == 1
        assert app.status()["dying"].restarts == 1


async def test_a_handler_whose_new_workers_cannot_start_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "restart_delay", lambda failures: 0.0)
    monkeypatch.setattr(replicas, "MAX_FAILED_STARTS", 2)
    starts = tmp_path / "starts"

    def load(device: str) -> None:
        with starts.open("a") as file:
            file.write("x")
        if starts.stat().st_size > 1:
            raise FileNotFoundError("no weights any more")

    handler = serve(name="f", setup=load)(lambda state, x: os._exit(1))
    async with serving(handler) as app:
        with anyio.fail_after(30):
            with pytest.raises(WorkerDied):
                await app.call("f", 1)
            failure = await app.failure
        assert str(failure) == "handler 'f' has no worker left: FileNotFoundError: no weights any more"
        assert "in load\n" in failure.traceback
        assert starts.read_text() == "xxx"
        assert not app.ready
        with pytest.raises(Unavailable):
            await app.call("f", 1)


async def test_each_of_eight_workers_on_four_gpus_sees_its_own_and_nothing_else(
    handlers: Any, meeting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    gpus = [Device("cuda", n, f"GPU-{n}") for n in range(4)]
    async with App(handlers.placed, worker="process", devices=DeviceManager(gpus)) as app:
        # All at once, so that each worker gets one.
        calls = [asyncio.ensure_future(app.call("placed", meeting.port)) for _ in range(8)]
        for go in [(await meeting.arrival())[1] for _ in calls]:
            go()
        states = await asyncio.gather(*calls)
        status = app.status()["placed"].workers
    assert [device for device, *_ in states] == ["cuda:0"] * 8
    assert sorted(seen for _, seen, *_ in states) == sorted(2 * [f"GPU-{n}" for n in range(4)])
    assert len({pid for *_, pid in states}) == 8
    # What each saw when the module was imported is what its place says.
    by_pid = {worker.pid: worker.uuids for worker in status}
    assert all(by_pid[pid] == (seen,) for _, seen, _, pid in states)


async def test_workers_that_share_the_cpu_share_its_cores(handlers: Any, meeting: Any) -> None:
    manager = DeviceManager([CPU], environ={})
    planned = {placement.environment["OMP_NUM_THREADS"] for placement in manager.plan([handlers.placed])["placed"]}
    async with App(handlers.placed, worker="process", devices=manager) as app:
        calls = [asyncio.ensure_future(app.call("placed", meeting.port)) for _ in range(2)]
        for go in [(await meeting.arrival())[1] for _ in calls]:
            go()
        assert {threads for _, _, threads, _ in await asyncio.gather(*calls)} == planned


async def test_nothing_in_the_working_directory_stands_in_for_the_standard_library(
    handlers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("signal", "queue", "socket", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    async with serving(handlers.one) as app:
        assert await app.call("one", 1) == 1


# ---------------------------------------------------------------------- what it reads and writes


async def test_what_a_handler_prints_goes_to_standard_error_and_what_it_reads_is_at_its_end(
    handlers: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving(handlers.one) as app:
        await app.call("one", ["print", "hello"])
        assert await app.call("one", ["read"]) == ""
        await app.call("one", ["at exit", "good bye"])
    printed = capfd.readouterr()
    assert "hello\ngood bye\n" in printed.err
    assert printed.out == ""


async def test_nothing_is_made_in_dev_shm_and_memory_comes_back(handlers: Any) -> None:
    async with serving(handlers.mirror) as app:
        pid = app.status()["mirror"].workers[0].pid
        for _ in range(5):
            await outcomes(app, "mirror", [np.zeros(1_000_000) for _ in range(8)])
            assert in_dev_shm(os.getpid()) == in_dev_shm(pid) == []
        # One segment each way, grown to what one batch in flight and the next need.
        sizes = [size for size in _mapped_sizes() if size]
        assert len(sizes) == 2
        assert max(sizes) <= 256 << 20


def _mapped_sizes() -> list[int]:
    sizes = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:tidegate" in line:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            sizes.append(end - start)
    return sizes


async def test_what_a_burst_needed_goes_back_to_the_system(handlers: Any) -> None:
    async with serving(handlers.one) as app:
        worker: Any = app._services["one"]._replicas[0]._worker

        def taken() -> list[int]:
            return [os.fstat(segment.fd).st_blocks * 512 for segment in worker._link._segments]

        await app.call("one", np.ones(2_000_000))
        assert min(taken()) >= 16_000_000
        for _ in range(2 * 300):
            await app.call("one", np.ones(2000))
        assert max(taken()) < 4_000_000


class OfThisProcess:
    """A class that workers cannot import."""

    def __init__(self, number: int) -> None:
        self.number = number


async def test_an_input_that_cannot_be_made_in_the_worker_is_that_items_error(
    handlers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pickled by the name of a module that is nowhere on sys.path.
    module = type(sys)("nowhere_else")
    module.OfThisProcess = OfThisProcess  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nowhere_else", module)
    monkeypatch.setattr(OfThisProcess, "__module__", "nowhere_else")
    async with serving(handlers.sixteen) as app:
        odd = await fifteen_right(app, "sixteen", OfThisProcess(3))
        assert isinstance(odd, (HandlerError, InvalidInput))
        assert "define their classes in a module that both processes import" in odd.detail
        assert app.status()["sixteen"].restarts == 0


async def test_an_answer_for_which_there_is_no_memory_is_out_of_memory_and_the_worker_lives_on(handlers: Any) -> None:
    async with serving(handlers.one) as app:
        with pytest.raises(OutOfMemory, match="shared memory"):
            await app.call("one", ["shortage", 10_000_000])
        assert await app.call("one", 1) == 1
        assert app.status()["one"].restarts == 0


async def test_a_batch_too_large_to_tell_of_is_an_error_and_its_memory_free_again(
    handlers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(handlers.one) as app:
        worker: Any = app._services["one"]._replicas[0]._worker
        with monkeypatch.context() as patch:
            patch.setattr(frames, "LARGEST", 2000)
            with pytest.raises(HandlerError, match="the limit is 2000"):
                await app.answer("one", np.zeros(10_000), info=RequestInfo("long" * 1000))
        assert worker._arena.used == 0
        assert await app.call("one", 1) == 1


async def test_a_batch_for_which_there_is_no_memory_is_tried_again_in_smaller_ones(handlers: Any) -> None:
    async with serving(handlers.mirror) as app:
        (replica,) = app._services["mirror"]._replicas
        worker: Any = replica._worker
        segment = worker._arena.segment
        grow = segment.grow

        def at_most(size: int) -> None:
            if size > 40 << 20:
                raise SharedMemoryFull(f"no {size} bytes of shared memory")
            grow(size)

        segment.grow = at_most
        answers = await outcomes(app, "mirror", [np.full(1_000_000, n) for n in range(8)])
        assert [answer[0] for answer in answers] == list(range(8))


# ---------------------------------------------------------------------- on the protocol itself


@asynccontextmanager
async def started(handler: Any) -> AsyncIterator[ProcessWorker]:
    handler.freeze()
    worker = ProcessWorker(handler, reference_to(handler), "cpu", {})
    with anyio.fail_after(30):
        await worker.start(lambda error: None)
    try:
        yield worker
    except BaseException:
        worker.kill()  # a test that failed may have left it with something to do
        raise
    finally:
        with anyio.fail_after(30):
            await worker.stop()


class NotedBatch(Batch):
    """A batch of no batcher, which notes what is reported."""

    def __init__(self, *values: Any) -> None:
        made = Batch.of(values)
        self.items, self.values, self.slot = made.items, made.values, 0
        self.completed, self.was_prepared = asyncio.Event(), asyncio.Event()

    def prepared(self) -> None:
        self.was_prepared.set()

    def complete(self, result: Any) -> None:
        self.result = result
        self.completed.set()

    async def outcome(self) -> Any:
        with anyio.fail_after(30):
            await self.completed.wait()
        return self.result


async def test_a_cancellation_that_comes_before_its_batch_is_taken_is_not_forgotten(handlers: Any) -> None:
    async with started(handlers.patient) as worker:
        held, behind = NotedBatch("wait", "-"), NotedBatch("-", "-", "-")
        worker.run(held)
        worker.run(behind)
        # In this order on one socket: whoever has heard the second has heard the first, and takes `behind` after both.
        worker.cancel(behind, 1)
        worker.cancel(held, 0)
        assert await held.outcome() == [True, False]
        assert await behind.outcome() == [False, True, False]
        worker.cancel(behind, 0)  # it has ended: nothing is kept of this


async def test_a_function_that_forks_and_returns_twice_ends_its_worker(handlers: Any) -> None:
    handlers.forked.freeze()
    worker = ProcessWorker(handlers.forked, reference_to(handlers.forked), "cpu", {})
    died: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    with anyio.fail_after(30):
        await worker.start(died.set_result)
        batch = NotedBatch(7)
        worker.run(batch)
        assert await batch.outcome() == [7]
        assert "answered a batch twice: did the function fork?" in str(await died)
        await worker.stop()


async def test_the_collector_leaves_alone_what_setup_has_loaded(handlers: Any) -> None:
    async with started(handlers.frozen) as worker:
        batch = NotedBatch(0)
        worker.run(batch)
        assert await batch.outcome() == [True]


async def test_a_second_batch_is_prepared_at_once_and_runs_behind_the_first(handlers: Any, meeting: Any) -> None:
    async with started(handlers.one) as worker:
        assert worker.prefetch
        first, second = NotedBatch(["meet", meeting.port]), NotedBatch(2)
        worker.run(first)
        worker.run(second)
        _, go = await meeting.arrival()
        with anyio.fail_after(10):
            await second.was_prepared.wait()
        assert not first.completed.is_set()
        go()
        assert await second.outcome() == [2]
        assert worker.completed == 2


async def test_only_plain_handlers_prepare_ahead(handlers: Any) -> None:
    for name, prefetch in {"one": True, "ahead": True, "count": False, "three_at_once": False}.items():
        handler = getattr(handlers, name)
        assert ProcessWorker(handler, reference_to(handler), "cpu", {}).prefetch is prefetch
    plain = handlers.one.override(overlap=False)
    assert not ProcessWorker(plain, reference_to(plain), "cpu", {}).prefetch


async def test_stopping_finishes_what_was_begun(handlers: Any) -> None:
    async with started(handlers.one) as worker:
        batches = [NotedBatch(n) for n in range(20)]
        for batch in batches:
            worker.run(batch)
    assert [batch.result for batch in batches] == [[n] for n in range(20)]


async def test_what_is_begun_on_a_dead_worker_waits_for_who_retries_it(handlers: Any) -> None:
    worker = ProcessWorker(handlers.one, reference_to(handlers.one), "cpu", {})
    died = asyncio.get_running_loop().create_future()
    with anyio.fail_after(30):
        await worker.start(died.set_result)
        os.kill(worker.pid, signal.SIGKILL)
        assert "was ended by SIGKILL (by the kernel, if memory ran out)" in (await died).detail
        batch = NotedBatch(1)
        worker.run(batch)
        worker.cancel(batch, 0)
        worker.kill()
        await worker.stop()
    assert not batch.completed.is_set()


async def test_a_process_that_does_not_end_after_its_teardown_is_ended(
    handlers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "EXIT_TIMEOUT", 0.2)
    with anyio.fail_after(15):  # less than there is for draining
        async with serving(handlers.torn_down) as app:
            pid = app.status()["torn_down"].workers[0].pid
            await app.call("torn_down", ["unending"])
    assert not psutil.pid_exists(pid)


async def test_a_handler_that_never_returns_is_ended_when_the_time_to_drain_is_over(
    handlers: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.service.TEARDOWN_TIMEOUT", 0.1)
    async with serving(handlers.one, drain_timeout=0.2) as app:
        pid = app.status()["one"].workers[0].pid
        call = asyncio.ensure_future(app.call("one", ["spin"]))
        await until(lambda: app.statistics()["one"].running == 1)
    assert not psutil.pid_exists(pid)
    assert call.done()
    assert "shutting down" in str(call.exception())


async def test_an_idle_worker_sleeps(handlers: Any) -> None:
    async with serving(handlers.one, handlers.ahead, handlers.three_at_once) as app:
        for name, value in (("one", 1), ("ahead", {}), ("three_at_once", ["return", 1])):
            await app.call(name, value)
        them = [psutil.Process(status.workers[0].pid) for status in app.status().values()]
        await asyncio.sleep(0.2)
        before = [process.num_ctx_switches().voluntary for process in them]
        await asyncio.sleep(0.5)
        woken = [p.num_ctx_switches().voluntary - b for p, b in zip(them, before, strict=True)]
    assert max(woken) <= 3
