import numpy as np
import pytest
import torch

from tidegate import LocalClient, pad, serve, unpad


@pytest.mark.parametrize("make", [np.ones, torch.ones])
@pytest.mark.parametrize(("shapes", "dim"), [([(3,), (1,), (0,)], 0), ([(2, 5), (2, 3)], 1), ([(4, 2), (1, 2)], -2)])
def test_what_was_padded_is_what_unpadding_gives_back(make: object, shapes: list[tuple[int, ...]], dim: int) -> None:
    items = [make(shape) for shape in shapes]  # type: ignore[operator]
    batch, lengths = pad(items, dim=dim, value=-1)
    assert len(batch) == len(items)
    assert [item.tolist() for item in unpad(batch, lengths, dim=dim)] == [item.tolist() for item in items]
    assert type(batch) is type(lengths) is type(items[0])


def test_gaps_are_filled_with_the_value_and_the_dtype_stays() -> None:
    batch, lengths = pad([np.array([1, 2], "float16"), np.array([3], "float16")], value=-1)
    assert batch.tolist() == [[1, 2], [3, -1]]
    assert batch.dtype == "float16"
    assert (lengths.tolist(), lengths.dtype) == ([2, 1], np.dtype("int64"))


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([np.zeros((2, 3)), np.zeros((2, 4))], r"item 1 has shape \(2, 4\)"),
        ([np.zeros(2), np.zeros((2, 1))], "item 1"),
        ([np.zeros(2), np.zeros(2, "int8")], "int8"),
    ],
)
def test_items_that_differ_elsewhere_are_refused_by_number(items: list[np.ndarray], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pad(items)


def test_an_axis_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dim=1\): the items have 1 axes"):
        pad([np.zeros(2)], dim=1)


def test_as_many_lengths_as_items_are_needed() -> None:
    with pytest.raises(ValueError, match="2 items and 1 lengths"):
        unpad(np.zeros((2, 3)), [3])


def test_pad_is_a_batch_hook_as_it_is() -> None:
    @serve(max_batch_size=4, batch=pad)
    def means(padded: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        batch, lengths = padded
        return np.asarray(batch.sum(1) / lengths)

    with LocalClient(means) as client:
        assert list(client.map([np.array([2.0, 4.0]), np.array([5.0])])) == [3.0, 5.0]
