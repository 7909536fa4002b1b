import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
InNoTime = Callable[[Coroutine[Any, Any, T]], T]


class _Jump(selectors.DefaultSelector):
    """Waits for nothing: the clock jumps instead."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen"
        self.at += max(0.0, timeout)
        found: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose hours pass in no time; `pass_time` is for who keeps it busy."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.at

    def pass_time(self, seconds: float) -> None:
        self._jump.at += seconds


@pytest.fixture
def in_no_time() -> InNoTime[Any]:
    """Run a coroutine on a clock that jumps from timer to timer."""

    def run(coroutine: Coroutine[Any, Any, T]) -> T:
        with closing(JumpingLoop()) as loop:
            return loop.run_until_complete(coroutine)

    return run
