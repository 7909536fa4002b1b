from collections.abc import Iterator

import numpy as np
import pytest

from tidegate import END, HandlerError, InvalidInput, serve
from tidegate.testing import request, serve_batch


def test_inputs_become_outputs_in_their_order_through_the_batcher() -> None:
    sizes = []

    @serve(max_batch_size=8, batch_timeout=0.05)
    def double(x: list[int]) -> list[int]:
        sizes.append(len(x))
        return [2 * n for n in x]

    assert serve_batch(double, range(8)) == [2 * n for n in range(8)]
    assert sizes == [8]


def test_an_error_is_raised_or_given_in_its_place() -> None:
    @serve(max_batch_size=8)
    def half(x: list[int]) -> list[float]:
        return [1 / n for n in x]

    with pytest.raises(HandlerError, match="ZeroDivisionError"):
        serve_batch(half, [1, 0])
    good, bad = serve_batch(half, [1, 0], return_exceptions=True)
    assert good == 1
    assert isinstance(bad, HandlerError)


def test_a_stream_gives_its_chunks_as_a_list() -> None:
    sizes = []

    @serve(max_batch_size=8, batch_timeout=0.05)
    def count(limits: list[int]) -> Iterator[list[object]]:
        sizes.append(len(limits))
        for n in range(max(limits) + 1):
            yield [n if n < limit else END for limit in limits]

    assert serve_batch(count, [2, 0, 3]) == [[0, 1], [], [0, 1, 2]]
    assert sizes == [3]


def test_bodies_are_read_and_written_as_over_http() -> None:
    @serve(max_batch_size=8)
    def square(x: np.ndarray) -> np.ndarray:
        return x**2

    assert request(square, [b"[1, 2]", b"[3, 4]"]) == [b"[1,4]", b"[9,16]"]
    with pytest.raises(InvalidInput, match="nested lists"):
        request(square, [b"[[1], [2, 3]]"])
