import dataclasses
from typing import Any

import pytest

from tidegate_batching.policy import Policy


def test_the_defaults_run_items_one_by_one() -> None:
    policy = Policy()
    assert (policy.max_batch_size, policy.batch_timeout, policy.max_batch_cost) == (1, "auto", None)
    assert (policy.max_queue_size, policy.max_queue_bytes, policy.isolate_errors) == (1024, 2**30, True)


def test_a_policy_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy().max_batch_size = 2  # type: ignore[misc]


def refused(kind: type[Exception], **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        Policy(**settings)
    return str(caught.value)


@pytest.mark.parametrize("field", ["max_batch_size", "max_queue_size", "max_queue_bytes"])
def test_sizes_are_whole_numbers_from_one(field: str) -> None:
    for value in (0, -1):
        assert refused(ValueError, **{field: value}).startswith(f"{field}={value}: must be 1 or more; ")
    for wrong in (1.0, "8", True, None):
        assert refused(TypeError, **{field: wrong}).startswith(f"{field}={wrong!r}: give a whole number; ")
    settings: dict[str, Any] = {field: 1}
    assert getattr(Policy(**settings), field) == 1


@pytest.mark.parametrize("field", ["batch_timeout", "max_batch_cost"])
def test_seconds_and_costs_are_finite_numbers_and_not_negative(field: str) -> None:
    for value in (-0.001, float("nan"), float("inf")):
        assert refused(ValueError, **{field: value}).startswith(f"{field}={value}: must be finite and not negative; ")
    for wrong in ("fast", True):
        assert refused(TypeError, **{field: wrong}).startswith(f"{field}={wrong!r}: must be a number; ")
    settings: dict[str, Any] = {field: 2}
    assert getattr(Policy(**settings), field) == 2


def test_a_batch_that_may_cost_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="^max_batch_cost=0: give a limit above 0, or None for none$"):
        Policy(max_batch_cost=0)


def test_batch_timeout_is_a_number_or_auto() -> None:
    assert Policy(batch_timeout=0).batch_timeout == 0
    assert Policy(batch_timeout="auto").batch_timeout == "auto"
    with pytest.raises(TypeError, match="batch_timeout=None: must be a number; give seconds; 0 never waits"):
        Policy(batch_timeout=None)  # type: ignore[arg-type]


def test_isolate_errors_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="^isolate_errors=1: give True or False$"):
        Policy(isolate_errors=1)  # type: ignore[arg-type]
