import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tidegate.collate import group_of, is_tensor, split, stack


class Boxes(NamedTuple):
    corners: Any
    labels: Any


def same(one: Any, other: Any) -> bool:
    """Equal in type, dtype and every element, through structures."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (np.ndarray, torch.Tensor)):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


KINDS = [np.array, torch.tensor]


@pytest.mark.parametrize("array", KINDS)
@pytest.mark.parametrize(("dim", "shape"), [(0, (4, 2, 3)), (1, (2, 4, 3)), (2, (2, 3, 4)), (-1, (2, 3, 4))])
def test_equal_arrays_are_stacked_on_a_new_axis_and_split_off_it_again(
    array: Any, dim: int, shape: tuple[int, ...]
) -> None:
    items = [array([[n, 0, 0], [0, n, 0]]) for n in range(4)]
    batch = stack(items, dim)
    assert tuple(batch.shape) == shape
    assert same(split(batch, dim), items)


@pytest.mark.parametrize("array", KINDS)
def test_scalars_become_one_axis(array: Any) -> None:
    batch = stack([array(1.5), array(2.5)])
    assert tuple(batch.shape) == (2,)
    assert [float(output) for output in split(batch)] == [1.5, 2.5]


@pytest.mark.parametrize("array", KINDS)
def test_a_batch_of_one_keeps_its_axis(array: Any) -> None:
    assert tuple(stack([array([1, 2, 3])]).shape) == (1, 3)
    assert same(split(array([[1, 2, 3]])), [array([1, 2, 3])])


@pytest.mark.parametrize("array", KINDS)
def test_stacking_copies_so_that_a_function_may_write_into_its_batch(array: Any) -> None:
    item = array([1, 2])
    stack([item])[:] = 9
    assert item.tolist() == [1, 2]


@pytest.mark.parametrize("array", KINDS)
def test_tuples_named_tuples_and_dicts_are_stacked_leaf_by_leaf_and_come_back(array: Any) -> None:
    items = [
        {"image": array([n, n]), "pair": (array([n]), f"text {n}"), "boxes": Boxes(array([n, 0]), array(n))}
        for n in range(3)
    ]
    batch = stack(items)
    assert tuple(batch["image"].shape) == (3, 2)
    assert batch["pair"][1] == ["text 0", "text 1", "text 2"]
    assert isinstance(batch["boxes"], Boxes)
    assert tuple(batch["boxes"].labels.shape) == (3,)
    restored = split(batch)
    assert [output["pair"][1] for output in restored] == ["text 0", "text 1", "text 2"]
    assert all(isinstance(output["boxes"], Boxes) for output in restored)
    assert same([output["image"] for output in restored], [item["image"] for item in items])


@pytest.mark.parametrize(
    "items", [["one", "two"], [1, 2], [None, None], [{"a": 1}, {"a": 2}], [("x", 1), ("y", 2)], [[1, 2], [3]], [(), ()]]
)
def test_what_holds_no_array_stays_a_list_of_the_callers_own_objects(items: list[Any]) -> None:
    batch = stack(items)
    assert type(batch) is list
    assert all(one is other for one, other in zip(batch, items, strict=True))


@pytest.mark.parametrize("array", KINDS)
def test_input_and_output_may_have_their_batch_on_different_axes(array: Any) -> None:
    batch = stack([array([1, 2, 3]), array([4, 5, 6])], 1)
    assert tuple(batch.shape) == (3, 2)
    assert same(split(batch.T, 0), [array([1, 2, 3]), array([4, 5, 6])])


def test_a_list_is_one_output_per_item_whatever_is_in_it() -> None:
    outputs = [np.zeros((2, 2)), None, "text"]
    assert split(outputs) is outputs


def test_parts_of_different_kinds_are_split_together() -> None:
    output = {"label": ["cat", "dog"], "score": torch.tensor([0.25, 0.5]), "box": np.array([[1, 2], [3, 4]])}
    assert same(
        split(output),
        [
            {"label": "cat", "score": torch.tensor(0.25), "box": np.array([1, 2])},
            {"label": "dog", "score": torch.tensor(0.5), "box": np.array([3, 4])},
        ],
    )


def test_a_tensor_that_requires_a_gradient_comes_back_without_it() -> None:
    outputs = split(torch.ones(2, 3, requires_grad=True) * 2)
    assert [output.requires_grad for output in outputs] == [False, False]


@pytest.mark.parametrize("array", KINDS)
def test_an_output_with_no_rows_splits_into_nothing(array: Any) -> None:
    assert split(array([])) == []


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (None, "NoneType"),
        ("text", "str"),
        (1.5, "float"),
        (np.float32(1), "numpy.float32"),
        ({}, "an empty dict"),
        ((), "an empty tuple"),
        ({1, 2}, "set"),
    ],
)
def test_an_output_that_cannot_be_split_is_an_error_that_names_its_type_and_the_fix(output: Any, named: str) -> None:
    with pytest.raises(TypeError) as caught:
        split(output)
    assert named in str(caught.value)
    assert "unbatch=" in str(caught.value)


@pytest.mark.parametrize("array", KINDS)
@pytest.mark.parametrize("dim", [1, -2])
def test_an_output_without_the_batch_axis_is_an_error_that_names_it(array: Any, dim: int) -> None:
    with pytest.raises(ValueError, match=rf"the output has 1 axes and none is batch_dim={dim}"):
        split(array([1, 2]), dim)


@pytest.mark.parametrize("output", [np.array(3.0), torch.tensor(3.0)])
def test_a_scalar_output_is_an_error(output: Any) -> None:
    with pytest.raises(ValueError, match="0 axes"):
        split(output)


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ({"a": np.zeros((2, 3)), "b": np.zeros(3)}, "output['a']: 2, output['b']: 3"),
        (([1, 2], torch.zeros(1)), "output[0]: 2, output[1]: 1"),
    ],
)
def test_parts_that_disagree_about_the_number_of_items_are_an_error_with_both_lengths(output: Any, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        split(output)
    assert told in str(caught.value)


def test_items_to_stack_must_have_the_same_keys() -> None:
    with pytest.raises(KeyError):
        stack([{"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.zeros(1)}])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros((2, 3)), np.ones((2, 3))),
        (torch.zeros(2), torch.ones(2)),
        ({"x": np.zeros(2), "name": "a"}, {"x": np.ones(2), "name": "b"}),
        ((np.zeros(2), torch.zeros(1)), (np.ones(2), torch.ones(1))),
        ("some text", {"any": "object"}),
    ],
)
def test_what_can_be_stacked_is_of_one_group(one: Any, other: Any) -> None:
    assert group_of(one) == group_of(other)
    assert hash(group_of(one)) == hash(group_of(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(2), np.zeros(3)),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2, "float32"), np.zeros(2, "float64")),
        (np.zeros(2, "<f4"), np.zeros(2, ">f4")),
        (np.zeros(2, "float32"), torch.zeros(2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64)),
        (np.zeros(2), [0.0, 0.0]),
        ({"x": np.zeros(2)}, {"y": np.zeros(2)}),
        ({"x": np.zeros(2)}, {"x": np.zeros(3)}),
        ((np.zeros(2),), (np.zeros(2), np.zeros(2))),
        ({"deep": (np.zeros(2), {"x": np.zeros(1)})}, {"deep": (np.zeros(2), {"x": np.zeros(2)})}),
    ],
)
def test_what_cannot_be_stacked_is_of_different_groups(one: Any, other: Any) -> None:
    assert group_of(one) != group_of(other)


def test_a_tensor_is_recognised_and_nothing_else_is_one() -> None:
    assert is_tensor(torch.zeros(1))
    assert not is_tensor(np.zeros(1))
    assert not is_tensor([1.0])


def test_collating_arrays_does_not_import_torch() -> None:
    code = (
        "import sys; import numpy as np; from tidegate.collate import *\n"
        "assert not is_tensor(np.zeros(1)) and len(split(stack([np.zeros(1)]))) == 1 and group_of('x') is None\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
