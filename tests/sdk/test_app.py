import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest

from tidegate import App, Closed, Handler, HandlerError, HTTPError, Overloaded, SetupFailed, serve

pytestmark = pytest.mark.anyio


@serve(max_batch_size=8)
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


def echo(x: Any) -> Any:
    return x


def echo_with_state(state: Any, x: Any) -> Any:
    return x


class Held:
    """A handler that says when its first batch has begun and finishes none before it is let go."""

    def __init__(self, **options: Any) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.seen: list[Any] = []

        def held(x: Any) -> Any:
            self.seen.append(x)
            self.begun.set()
            assert self.go.wait(10)
            return x

        self.handler: Handler[..., Any] = serve(name="held", **options)(held)

    async def has_begun(self) -> None:
        assert await anyio.to_thread.run_sync(self.begun.wait, 10)


async def outcomes(*calls: Any) -> list[Any]:
    """What each call returned or raised, in the calls' order."""
    with anyio.fail_after(20):
        return await asyncio.gather(*calls, return_exceptions=True)


# ---------------------------------------------------------------------- what is asked is answered


async def test_two_handlers_answer_their_own_callers_in_batches() -> None:
    first, second = Held(max_batch_size=8), threading.Event()

    @serve(max_batch_size=16)
    def negate(x: np.ndarray) -> np.ndarray:
        assert second.wait(10)
        return -x

    async with App(first.handler, negate) as app:
        calls = [app.call("held", n) for n in range(64)]
        calls += [app.call("negate", np.array([n, n])) for n in range(64)]
        waiting = asyncio.ensure_future(outcomes(*calls))
        await first.has_begun()
        first.go.set()
        second.set()
        answers = await waiting
        statistics = app.statistics()
    assert answers[:64] == list(range(64))
    assert [answer.tolist() for answer in answers[64:]] == [[-n, -n] for n in range(64)]
    assert max(statistics["held"].batch_sizes) == 8
    assert max(statistics["negate"].batch_sizes) == 16
    assert {name: dict(s.outcomes) for name, s in statistics.items()} == {"held": {"ok": 64}, "negate": {"ok": 64}}


async def test_calls_that_wait_while_a_batch_runs_share_the_next_ones() -> None:
    held = Held(max_batch_size=8)
    async with App(held.handler) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(app.call, "held", -1)
        await held.has_begun()
        for n in range(64):
            tasks.start_soon(app.call, "held", n)
        await anyio.wait_all_tasks_blocked()
        assert (app.statistics()["held"].running, app.statistics()["held"].waiting) == (1, 64)
        held.go.set()
    assert held.seen == [[-1], *([*range(n, n + 8)] for n in range(0, 64, 8))]
    assert dict(app.statistics()["held"].batch_sizes) == {1: 1, 8: 8}


async def test_a_call_of_higher_priority_goes_first() -> None:
    held = Held()
    async with App(held.handler) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(app.call, "held", "running")
        await held.has_begun()
        for name, priority in [("last", 7), ("middle", 3), ("first", 0)]:
            tasks.start_soon(lambda name, priority: app.call("held", name, priority=priority), name, priority)
            await anyio.wait_all_tasks_blocked()
        held.go.set()
    assert held.seen == ["running", "first", "middle", "last"]


async def test_an_answer_carries_its_times_and_batch_size() -> None:
    async with App(double) as app:
        answer = await app.answer("double", 21)
    assert (answer.value, answer.batch_size) == (42, 1)
    assert answer.queued >= 0 < answer.ran


async def test_an_unknown_handler_is_a_key_error() -> None:
    async with App(double) as app:
        with pytest.raises(KeyError):
            await app.call("triple", 1)


# ---------------------------------------------------------------------- what fails does not hang


async def test_an_exception_in_an_items_place_fails_that_item_alone() -> None:
    @serve(max_batch_size=8, batch_timeout=1.0)
    def even(x: list[int]) -> list[int | Exception]:
        return [HTTPError(418, f"{n} is odd") if n == 3 else n for n in x]

    async with App(even) as app:
        answers = await outcomes(*(app.call("even", n) for n in range(8)))
        assert dict(app.statistics()["even"].batch_sizes) == {8: 1}
    error = answers.pop(3)
    assert answers == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(error, HTTPError)
    assert (error.status, error.detail) == (418, "3 is odd")


async def test_when_the_function_raises_its_culprit_gets_the_error_and_nobody_hangs() -> None:
    @serve(max_batch_size=8)
    def fragile(x: list[int]) -> list[float]:
        return [1 / n for n in x]

    async with App(fragile) as app:
        answers = await outcomes(*(app.call("fragile", n) for n in range(16)))
        assert await app.call("fragile", 4) == 0.25
    assert isinstance(answers[0], HandlerError)
    assert answers[0].type_name == "ZeroDivisionError"
    assert isinstance(answers[0].__cause__, ZeroDivisionError)
    assert all(isinstance(answer, HandlerError) or answer == 1 / n for n, answer in enumerate(answers) if n)


async def test_a_wrong_number_of_outputs_is_an_error_for_its_batch() -> None:
    @serve(max_batch_size=8)
    def short(x: list[int]) -> list[int]:
        return x[1:]

    async with App(short) as app:
        answers = await outcomes(app.call("short", 1))
    assert answers[0].code == "batch-size-mismatch"


async def test_a_full_queue_refuses_at_once() -> None:
    held = Held(max_queue_size=2)
    async with App(held.handler) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(app.call, "held", 0)
        await held.has_begun()
        for n in (1, 2):
            tasks.start_soon(app.call, "held", n)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await app.call("held", 3)
        held.go.set()
    assert held.seen == [0, 1, 2]


async def test_a_cancelled_call_leaves_the_queue_without_running() -> None:
    held = Held()
    async with App(held.handler) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(app.call, "held", 0)
        await held.has_begun()
        async with anyio.create_task_group() as impatient:
            impatient.start_soon(app.call, "held", 1)
            await anyio.wait_all_tasks_blocked()
            assert app.statistics()["held"].waiting == 1
            impatient.cancel_scope.cancel()
        assert app.statistics()["held"].waiting == 0
        tasks.start_soon(app.call, "held", 2)
        await anyio.wait_all_tasks_blocked()
        held.go.set()
    assert held.seen == [0, 2]
    assert dict(app.statistics()["held"].outcomes) == {"ok": 2, "cancelled": 1}


# ---------------------------------------------------------------------- start and end


async def test_calls_in_flight_are_answered_when_the_app_is_left() -> None:
    held = Held()
    with anyio.fail_after(10):
        async with App(held.handler) as app:
            waiting = asyncio.ensure_future(outcomes(*(app.call("held", n) for n in range(5))))
            await held.has_begun()
            # Runs as soon as leaving waits for something.
            asyncio.get_running_loop().call_soon(held.go.set)
        assert await waiting == [0, 1, 2, 3, 4]


async def test_a_call_after_the_end_is_refused_as_closed() -> None:
    async with App(double) as app:
        pass
    with pytest.raises(Closed):
        await app.call("double", 1)


async def test_an_error_in_the_body_passes_through_as_it_is_and_callers_are_still_answered() -> None:
    held = Held()
    error = LookupError("in the body")
    with anyio.fail_after(10):
        with pytest.raises(LookupError) as caught:
            async with App(held.handler) as app:
                waiting = asyncio.ensure_future(outcomes(*(app.call("held", n) for n in range(5))))
                await held.has_begun()
                asyncio.get_running_loop().call_soon(held.go.set)
                raise error
        assert caught.value is error
        assert await waiting == [0, 1, 2, 3, 4]


async def test_a_failing_setup_fails_the_app_as_it_is_and_stops_the_handlers_before_it() -> None:
    def load(device: str) -> None:
        raise OSError("no weights")

    broken = serve(name="broken", setup=load)(echo_with_state)
    with anyio.fail_after(10), pytest.raises(SetupFailed, match="'broken'.*no weights"):
        async with App(double, broken):
            raise AssertionError("must not start")
    for thread in threading.enumerate():
        if thread.name.startswith("tidegate-"):
            thread.join(10)
            assert not thread.is_alive()


async def test_an_app_can_be_entered_again() -> None:
    app = App(double)
    for n in (1, 2):
        async with app:
            assert await app.call("double", n) == 2 * n


# ---------------------------------------------------------------------- composition


def test_an_app_needs_a_handler() -> None:
    with pytest.raises(ValueError, match="at least one handler"):
        App()


@pytest.mark.parametrize("thing", [len, lambda x: x, "double", [double]])
def test_only_handlers_are_served(thing: Any) -> None:
    with pytest.raises(TypeError, match="decorate it with @serve"):
        App(thing)


@pytest.mark.parametrize("name", ["docs", "health", "healthz", "info", "livez", "metrics", "readyz"])
def test_a_handler_cannot_take_a_name_that_the_doors_answer(name: str) -> None:
    handler = serve(name=name)(echo)
    with pytest.raises(ValueError) as caught:
        App(double, handler)
    assert repr(name) in str(caught.value)
    assert "name=" in str(caught.value)


def test_two_handlers_cannot_have_one_name() -> None:
    other = serve(name="double")(echo)
    with pytest.raises(ValueError, match="two handlers are called 'double'"):
        App(double, other)


@pytest.mark.parametrize(
    ("doors", "told"), [({"gopher": "x"}, "installed: asgi, fronts, granian"), ({"http": "x"}, "HOST:PORT")]
)
def test_a_door_that_cannot_be_opened_is_refused_before_anything_is_set_up(doors: dict[str, Any], told: str) -> None:
    def never(device: str) -> None:
        raise AssertionError("set up")

    handler = serve(name="f", setup=never)(echo_with_state)
    with pytest.raises(ValueError, match=told):
        App(handler, **doors)


async def test_a_third_partys_door_is_open_as_long_as_the_app_is_entered(third_party: Path) -> None:
    app = App(double, null="here")
    (door,) = app.transports
    notes: list[str] = vars(door)["notes"]
    async with app:
        assert notes == ["opened with double"]
    assert notes == ["opened with double", "closed"]


async def test_an_app_is_ready_when_all_its_doors_are_open() -> None:
    seen: list[bool] = []

    class Door:
        url = "nowhere"

        @asynccontextmanager
        async def serve(self, app: App) -> AsyncIterator[None]:
            app.watchers.append(lambda: seen.append(app.ready))
            seen.append(app.ready)
            yield

    app = App(double, worker="thread", one=Door(), other=Door())
    for _ in range(2):
        async with app:
            assert seen[:2] == [False, False]
            assert seen[2:] == [True] * len(app.watchers)
        seen.append(app.ready)
        assert seen[-1] is False
        app.watchers.clear()
        seen.clear()


async def test_a_door_opens_only_when_every_handler_is_set_up(third_party: Path) -> None:
    app: list[App] = []
    notes_at_setup: list[list[str]] = []

    def load(device: str) -> None:
        notes_at_setup.append(list(vars(app[0].transports[0])["notes"]))

    handler = serve(name="f", setup=load)(echo_with_state)
    app.append(App(handler, worker="thread", null="here"))
    async with app[0]:
        assert notes_at_setup == [[]]


RUN = """
import asyncio, signal
import tidegate
from nowhere import Null

@tidegate.serve(max_batch_size=4)
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]

def interrupt_when_opened(self, app, serve=Null.serve):
    asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
    return serve(self, app)

Null.serve = interrupt_when_opened
tidegate.run(double, null="here")
print("returned")
"""


def test_run_serves_until_it_is_interrupted_and_returns(third_party: Path) -> None:
    path = os.pathsep.join([str(third_party), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-c", RUN],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "returned\n", "")
