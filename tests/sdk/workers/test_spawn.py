import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tidegate.workers import spawn
from tidegate.workers.spawn import Child, kill_all, spawned

pytestmark = pytest.mark.anyio


class Started:
    """A child that runs `main` of a module written here, and what is heard of it."""

    def __init__(self, folder: Path, body: str, environment: dict[str, str] | None = None) -> None:
        name = f"child_of_test_{folder.name}".replace("-", "_")
        (folder / f"{name}.py").write_text(f"def main(descriptor):\n    {body}\n")
        self.ended = asyncio.Event()
        self.ends = 0
        self.ours, its = socket.socketpair()
        with its:
            module = type(sys)(name)
            module.__file__ = str(folder / name / "__init__.py")
            sys.modules[name] = module
            try:
                self.child = Child("child", [its.fileno()], environment or {}, self.end, name)
            finally:
                del sys.modules[name]

    def end(self) -> None:
        self.ends += 1
        self.ended.set()

    async def described(self) -> str:
        with anyio.fail_after(30):
            await self.ended.wait()
        return self.child.describe_end()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    all_of_them: list[Started] = []

    def start(*arguments: Any) -> Started:
        all_of_them.append(Started(tmp_path, *arguments))
        return all_of_them[-1]

    yield start
    for one in all_of_them:
        one.ours.close()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("pass", "exited with status 0"),
        ("import os; os._exit(3)", "exited with status 3"),
        ("import os; os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL (by the kernel, if memory ran out)"),
        ("import os; os.kill(os.getpid(), 40)", "was ended by signal 40"),
    ],
)
async def test_a_childs_end_is_told_once_with_how_it_was(started: Any, body: str, told: str) -> None:
    one = started(body)
    assert one.child.describe_end() == "still runs"
    assert await one.described() == told
    assert one.ends == 1
    # It is reaped: nobody has this number any more.
    with pytest.raises(ProcessLookupError):
        os.kill(one.child.pid, 0)


async def test_a_child_is_killed_whatever_it_does_and_once_is_enough(started: Any) -> None:
    one = started("import time; time.sleep(1000)")
    one.child.kill()
    one.child.kill()
    assert (await one.described()).startswith("was ended by SIGKILL")
    one.child.kill()
    assert one.ends == 1


async def test_all_children_can_be_ended_at_once(started: Any) -> None:
    two = [started("import time; time.sleep(1000)") for _ in range(2)]
    kill_all()
    for one in two:
        assert (await one.described()).startswith("was ended by SIGKILL")
    assert spawn._living.isdisjoint(one.child for one in two)


async def test_a_child_inherits_what_it_is_given_and_nothing_else(started: Any) -> None:
    one = started("import os; os.write(descriptor, ' '.join(os.listdir('/proc/self/fd')).encode())")
    one.ours.settimeout(30)
    descriptors = sorted(map(int, (await asyncio.to_thread(one.ours.recv, 1000)).split()))
    # The three standard ones, what it was given, and the listing's own.
    assert descriptors[:3] == [0, 1, 2]
    assert len(descriptors) <= 5
    await one.described()


async def test_a_child_has_its_environment_and_a_group_of_its_own_and_ignores_requests_to_end(started: Any) -> None:
    one = started(
        "import os; os.write(descriptor, f'{os.getpgid(0)} {os.environ[\"NAME\"]}'.encode()); os.read(descriptor, 1)",
        {"NAME": "value"},
    )
    one.ours.settimeout(30)
    assert await asyncio.to_thread(one.ours.recv, 1000) == f"{one.child.pid} value".encode()
    os.kill(one.child.pid, signal.SIGINT)
    os.kill(one.child.pid, signal.SIGTERM)
    one.ours.send(b"x")
    assert await one.described() == "exited with status 0"


async def test_where_there_is_no_pidfd_a_thread_waits(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert await started("import os; os._exit(3)").described() == "exited with status 3"


def test_this_process_is_no_worker() -> None:
    assert not spawned()
