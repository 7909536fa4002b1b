from typing import Any

import pytest

from tidegate.discovery import CPU, Device
from tidegate.selection import check_devices, chosen, listing

GPUS = [
    Device("cuda", 0, "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "NVIDIA H200"),
    Device("cuda", 1, "GPU-8932ffff-d72c-4106-c12f-20bd9faed9f6", "NVIDIA H200"),
    Device("cuda", 2, "GPU-11111111-d72c-4106-c12f-20bd9faed9f6", "NVIDIA H200"),
]
FOUR = [*GPUS, CPU]
AMD = [Device("rocm", 0, name="AMD Instinct MI300X"), CPU]
APPLE = [Device("mps", name="Apple GPU"), CPU]
BARE = [CPU]


def names(devices: Any, there: list[Device]) -> list[str]:
    checked = check_devices(devices)
    assert not isinstance(checked, int)
    return [str(device) for device in chosen(checked, there)]


@pytest.mark.parametrize(
    ("devices", "there", "expected"),
    [
        ("auto", FOUR, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", AMD, ["cuda:0"]),
        ("auto", APPLE, ["mps"]),
        ("auto", BARE, ["cpu"]),
        ("cpu", FOUR, ["cpu"]),
        ("cuda", FOUR, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", AMD, ["cuda:0"]),
        ("cuda:1", FOUR, ["cuda:1"]),
        ("cuda:0", AMD, ["cuda:0"]),
        ("mps", APPLE, ["mps"]),
        ("mps:0", APPLE, ["mps"]),
        (["cpu:0"], FOUR, ["cpu"]),
        ([2, 0], FOUR, ["cuda:2", "cuda:0"]),
        ((1,), FOUR, ["cuda:1"]),
        ([0], APPLE, ["mps"]),
        (["cuda:1"], FOUR, ["cuda:1"]),
        (["cuda"], FOUR, ["cuda:0", "cuda:1", "cuda:2"]),
        (["cuda", "cpu"], FOUR, ["cuda:0", "cuda:1", "cuda:2", "cpu"]),
        ([1, "cuda:0", "GPU-1", "cpu"], FOUR, ["cuda:1", "cuda:0", "cuda:2", "cpu"]),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", FOUR, ["cuda:0"]),
        ("gpu-8932F937", FOUR, ["cuda:0"]),
        ("11111111-d72c", FOUR, ["cuda:2"]),
    ],
)
def test_every_spelling_means_its_devices_in_the_order_in_which_they_were_named(
    devices: Any, there: list[Device], expected: list[str]
) -> None:
    assert names(devices, there) == expected


@pytest.mark.parametrize(
    ("devices", "there", "message"),
    [
        ("cuda", BARE, "there is no cuda; there is only cpu"),
        ("mps", BARE, "there is no mps; there is only cpu"),
        ("cuda:7", FOUR, r"there is no cuda:7; there is cuda:0 \(NVIDIA H200, GPU-8932f937-.*\), cuda:1 .* and cpu"),
        ([3], FOUR, "there is no accelerator 3; there is cuda:0"),
        ([0], BARE, "there is no accelerator 0; there is only cpu"),
        ("cpu:1", FOUR, "there is no cpu:1"),
        ("GPU-2", FOUR, "there is no GPU-2; there is cuda:0"),
        ("GPU-8932f", FOUR, "'GPU-8932f' begins several UUIDs: cuda:0 .* and cuda:1 .*; write more of it"),
        ([0, 0], FOUR, "0 is cuda:0, named before: for more workers on it give workers_per_device="),
        ([0, "cuda:0"], FOUR, "'cuda:0' is cuda:0, named before"),
        ([2, "GPU-1"], FOUR, "'GPU-1' is cuda:2, named before"),
        (["cpu", "cpu"], BARE, "'cpu' is cpu, named before"),
    ],
)
def test_what_is_not_there_is_an_error_that_lists_what_is(devices: Any, there: list[Device], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        names(devices, there)


@pytest.mark.parametrize("devices", ["gpu", "cuda:", "cuda:x", "CUDA", "tpu", "", "0", "0,1", "GPU-", "deadbee", -1, 0])
def test_an_unknown_spelling_is_refused_before_any_device_is_looked_for(devices: Any) -> None:
    with pytest.raises(ValueError, match=f"devices={devices!r}: "):
        check_devices(devices)


@pytest.mark.parametrize("devices", [True, None, 1.0, {"cuda"}, {"cuda": 1}, b"cpu"])
def test_another_type_is_refused(devices: Any) -> None:
    with pytest.raises(TypeError, match="'auto', 'cpu', 'cuda', 'mps', how many, or a list"):
        check_devices(devices)


@pytest.mark.parametrize(
    ("devices", "error"),
    [([], ValueError), (["auto"], ValueError), ([-1], ValueError), ([0, "gpu"], ValueError), ([True], TypeError)],
)
def test_a_list_is_checked_entry_by_entry(devices: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"devices=\["):
        check_devices(devices)


def test_a_list_is_kept_as_a_tuple_and_a_number_as_it_is() -> None:
    mine = [0, "cpu"]
    kept = check_devices(mine)
    mine.append(1)
    assert kept == (0, "cpu")
    assert check_devices(2) == 2


def test_a_listing_reads_like_a_sentence() -> None:
    assert listing(BARE) == "cpu"
    assert listing(AMD) == "cuda:0 (AMD Instinct MI300X) and cpu"
    assert listing([Device("cuda", 0), Device("cuda", 1, "GPU-1"), CPU]) == "cuda:0, cuda:1 (GPU-1) and cpu"
