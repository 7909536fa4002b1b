import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import serve
from tidegate.discovery import CPU, Device
from tidegate.handler import Handler
from tidegate.placement import Placement, cores, plan


def handler(name: str = "f", **options: Any) -> Handler[..., Any]:
    def function(x: Any) -> Any:
        return x

    return serve(name=name, **options)(function)


def gpus(count: int) -> list[Device]:
    return [*(Device("cuda", n, f"GPU-{n}", "NVIDIA H200") for n in range(count)), CPU]


def rows(*handlers: Handler[..., Any], there: list[Device], **more: Any) -> list[tuple[str, dict[str, str], Any]]:
    """Every worker as (devices, environment, what `setup` gets)."""
    placed = plan(handlers, there, **{"environ": {}, **more})
    assert list(placed) == [one.name for one in handlers]
    return [
        (" ".join(map(str, one.devices)), dict(one.environment), one.setup_argument)
        for placements in placed.values()
        for one in placements
    ]


def on(*handlers: Handler[..., Any], there: list[Device], **more: Any) -> dict[str, list[str]]:
    """By handler, the devices of each worker."""
    placed = plan(handlers, there, **{"environ": {}, **more})
    return {name: [" ".join(map(str, one.devices)) for one in placements] for name, placements in placed.items()}


# ---------------------------------------------------------------------- what a worker sees


def test_a_process_sees_its_own_gpu_only_and_knows_it_as_the_first() -> None:
    assert rows(handler(), there=gpus(2)) == [
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-0"}, "cuda:0"),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-1"}, "cuda:0"),
    ]


def test_the_first_workers_are_on_different_gpus() -> None:
    assert on(handler(workers_per_device=2), there=gpus(2)) == {"f": ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]}


def test_a_worker_on_several_gpus_gets_a_list() -> None:
    assert rows(handler(devices_per_worker=2), there=gpus(4)) == [
        ("cuda:0 cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-0,GPU-1"}, ["cuda:0", "cuda:1"]),
        ("cuda:2 cuda:3", {"CUDA_VISIBLE_DEVICES": "GPU-2,GPU-3"}, ["cuda:0", "cuda:1"]),
    ]


def test_a_gpu_without_a_uuid_is_named_by_its_entry() -> None:
    there = [Device("cuda", 0, entry="3"), CPU]
    assert rows(handler(), there=there) == [("cuda:0", {"CUDA_VISIBLE_DEVICES": "3"}, "cuda:0")]


def test_an_amd_gpu_is_named_in_both_variables_that_hip_reads() -> None:
    there = [Device("rocm", 0, "GPU-x", entry="2"), CPU]
    environment = {"HIP_VISIBLE_DEVICES": "2", "CUDA_VISIBLE_DEVICES": "2"}
    assert rows(handler(), there=there) == [("cuda:0", environment, "cuda:0")]


def test_a_process_on_apples_gpu_needs_no_variable() -> None:
    assert rows(handler(), there=[Device("mps"), CPU]) == [("mps", {}, "mps")]


def test_a_process_that_was_told_cpu_sees_no_gpu() -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
    assert rows(handler(devices="cpu"), there=gpus(2)) == [("cpu", hidden, "cpu")]
    assert rows(handler(devices=["cpu"]), there=gpus(0)) == [("cpu", hidden, "cpu")]


def test_where_auto_found_nothing_nothing_is_hidden() -> None:
    assert rows(handler(), there=gpus(0)) == [("cpu", {}, "cpu")]


def test_a_thread_gets_the_number_that_counts_in_this_process_and_no_variable() -> None:
    there = gpus(4)
    assert rows(handler(devices=[3, "cpu"], worker="thread"), there=there) == [
        ("cuda:3", {}, "cuda:3"),
        ("cpu", {}, "cpu"),
    ]
    both: list[Any] = [("cuda:2 cuda:1", {}, ["cuda:2", "cuda:1"])]
    assert rows(handler(devices=[2, 1], devices_per_worker=2), there=there, worker="thread") == both


def test_a_handler_says_itself_whether_it_runs_in_a_process() -> None:
    placed = plan(
        [handler("a", worker="thread"), handler("b", worker="process"), handler("c")],
        gpus(1),
        worker="thread",
        environ={},
    )
    assert [one.worker for placements in placed.values() for one in placements] == ["thread", "process", "thread"]


def test_a_placement_tells_the_uuids_that_it_knows() -> None:
    devices = (Device("cuda", 0, "GPU-0"), Device("cuda", 1, entry="1"))
    assert Placement("f", "process", devices, {}, ["cuda:0", "cuda:1"]).uuids == ("GPU-0",)


# ---------------------------------------------------------------------- MIG

SLICED = [Device("cuda", 0, "MIG-1"), Device("cuda", 1, "MIG-2"), Device("cuda", 2, "GPU-2"), CPU]


def test_each_slice_gets_a_process_of_its_own() -> None:
    environments = [environment for _, environment, _ in rows(handler(), there=SLICED)]
    assert environments == [{"CUDA_VISIBLE_DEVICES": name} for name in ("MIG-1", "MIG-2", "GPU-2")]


def test_threads_use_the_one_slice_that_cuda_shows_this_process() -> None:
    assert rows(handler(worker="thread"), there=[SLICED[2], *SLICED[:2], CPU]) == [("cuda:0", {}, "cuda:0")]


def test_slices_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="devices_per_worker=2: CUDA shows a process one slice"):
        on(handler(devices_per_worker=2), there=SLICED)


# ---------------------------------------------------------------------- balance


def test_auto_places_every_handler_on_every_gpu() -> None:
    assert on(handler("a"), handler("b"), there=gpus(2)) == {"a": ["cuda:0", "cuda:1"], "b": ["cuda:0", "cuda:1"]}


def test_two_handlers_that_ask_for_two_of_four_gpus_share_none() -> None:
    both = on(handler("a", devices=2), handler("b", devices=2), there=gpus(4))
    assert both == {"a": ["cuda:0", "cuda:1"], "b": ["cuda:2", "cuda:3"]}


def test_who_names_its_gpus_gets_them_and_who_counts_gets_the_others_whatever_the_order() -> None:
    both = on(handler("a", devices=2), handler("b", devices=[0, 2]), there=gpus(4))
    assert both == {"a": ["cuda:1", "cuda:3"], "b": ["cuda:0", "cuda:2"]}


def test_who_has_many_workers_per_gpu_chooses_before_who_has_few() -> None:
    three = on(
        handler("a", devices=1), handler("b", devices=1), handler("c", devices=1, workers_per_device=2), there=gpus(2)
    )
    assert three == {"a": ["cuda:1"], "b": ["cuda:1"], "c": ["cuda:0", "cuda:0"]}


def test_groups_are_of_neighbours_and_balanced_too() -> None:
    both = on(
        handler("a", devices=2, devices_per_worker=2), handler("b", devices=2, devices_per_worker=2), there=gpus(5)
    )
    assert both == {"a": ["cuda:0 cuda:1"], "b": ["cuda:2 cuda:3"]}


@st.composite
def counting_handlers(draw: st.DrawFn) -> tuple[int, list[Handler[..., Any]]]:
    """GPUs, and handlers that want a number of them in groups that divide it."""
    count = draw(st.integers(1, 8))
    handlers = []
    for number in range(draw(st.integers(1, 6))):
        size = draw(st.integers(1, count))
        wanted = size * draw(st.integers(1, count // size))
        workers = draw(st.integers(1, 3))
        handlers.append(handler(f"h{number}", devices=wanted, devices_per_worker=size, workers_per_device=workers))
    return count, handlers


@given(counting_handlers())
def test_every_worker_has_its_number_of_neighbouring_gpus_and_every_handler_its_number_of_workers(
    drawn: tuple[int, list[Handler[..., Any]]],
) -> None:
    count, handlers = drawn
    there = gpus(count)
    placed = plan(handlers, there, environ={})
    for one in handlers:
        options, workers = one.options, placed[one.name]
        per_group = Counter(worker.devices for worker in workers)
        assert set(per_group.values()) == {options.workers_per_device}
        used = [device for group in per_group for device in group]
        assert len(used) == len(set(used)) == options.devices
        for worker in workers:
            start = worker.devices[0].index
            assert list(worker.devices) == there[start : start + options.devices_per_worker]
            assert worker.environment["CUDA_VISIBLE_DEVICES"].split(",") == [device.uuid for device in worker.devices]
            names = [f"cuda:{n}" for n in range(options.devices_per_worker)]
            assert worker.setup_argument == (names if len(names) > 1 else "cuda:0")


@given(st.integers(1, 8), st.lists(st.integers(1, 8), min_size=1, max_size=8))
def test_gpus_that_nobody_named_differ_by_one_worker_at_most(count: int, wanted: list[int]) -> None:
    handlers = [handler(f"h{place}", devices=min(number, count)) for place, number in enumerate(wanted)]
    placed = plan(handlers, gpus(count), environ={})
    load = Counter(device for workers in placed.values() for one in workers for device in one.devices)
    loads = [load[device] for device in gpus(count)[:-1]]
    assert max(loads) - min(loads) <= 1


@given(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True), st.integers(1, 8))
def test_a_named_choice_is_never_changed_and_is_avoided_while_there_are_others(named: list[int], wanted: int) -> None:
    both = plan([handler("a", devices=wanted), handler("b", devices=named)], gpus(8), environ={})
    assert [one.devices[0].index for one in both["b"]] == named
    taken = {one.devices[0].index for one in both["a"]}
    assert len(taken & set(named)) == max(0, wanted - (8 - len(named)))


# ---------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("options", "count", "message"),
    [
        ({"devices": 3}, 2, r"devices=3: there are 2 accelerators: cuda:0 \(NVIDIA H200, GPU-0\) and cuda:1"),
        ({"devices": 2}, 1, "devices=2: there is 1 accelerator: cuda:0"),
        ({"devices": 2}, 0, "devices=2: there is only the CPU; .* devices='cpu', workers_per_device=2"),
        ({"devices": [5]}, 2, r"devices=\[5\]: there is no accelerator 5; there is cuda:0 .* and cpu"),
        ({"devices": 3, "devices_per_worker": 2}, 4, "3 is no multiple of devices_per_worker=2"),
        (
            {"devices": [0, 1, 2], "devices_per_worker": 2},
            4,
            "there are 3 accelerators, no multiple of devices_per_worker=2",
        ),
        (
            {"devices_per_worker": 4},
            2,
            "there are 2 accelerators, no multiple of devices_per_worker=4",
        ),
        ({"devices_per_worker": 2}, 0, "devices_per_worker=2 needs GPUs; there is cpu"),
        ({"devices": "cpu", "devices_per_worker": 2}, 4, "devices_per_worker=2 needs GPUs"),
        ({"devices": [0, "cpu"], "devices_per_worker": 2}, 4, "devices_per_worker=2 needs GPUs"),
    ],
)
def test_what_cannot_be_placed_is_an_error_that_names_the_handler_and_what_is_there(
    options: dict[str, Any], count: int, message: str
) -> None:
    with pytest.raises(ValueError, match=f"handler 'embed': .*{message}"):
        plan([handler("embed", **options)], gpus(count), environ={})


def test_an_error_tells_what_hides_devices() -> None:
    with pytest.raises(ValueError, match=r"under CUDA_VISIBLE_DEVICES=1, HIP_VISIBLE_DEVICES=\)$"):
        plan([handler(devices=2)], gpus(1), environ={"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "1"})


@pytest.mark.parametrize("devices", ["auto", "cuda"])
def test_what_auto_leaves_over_stays_idle_and_is_told(devices: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert on(handler(devices=devices, devices_per_worker=2), there=gpus(3)) == {"f": ["cuda:0 cuda:1"]}
    assert caplog.messages == ["handler f: devices_per_worker=2 leaves cuda:2 (NVIDIA H200, GPU-2) idle"]


# ---------------------------------------------------------------------- cores


def threads(*handlers: Handler[..., Any], there: list[Device], core_count: int = 8, **environ: str) -> list[str | None]:
    placed = plan(handlers, there, environ=environ, core_count=core_count)
    return [one.environment.get("OMP_NUM_THREADS") for placements in placed.values() for one in placements]


def test_processes_that_share_the_cpu_share_its_cores() -> None:
    assert threads(handler(workers_per_device=4), there=gpus(0)) == ["2"] * 4
    assert threads(handler("a"), handler("b", workers_per_device=2), there=gpus(0)) == ["2"] * 3
    assert threads(handler(workers_per_device=4), there=gpus(0), core_count=2) == ["1"] * 4


def test_who_has_the_cpu_alone_is_left_alone_and_so_is_who_runs_on_a_gpu_or_a_thread() -> None:
    assert threads(handler(), there=gpus(0)) == [None]
    assert threads(handler(workers_per_device=2), there=gpus(1)) == [None, None]
    assert threads(handler("a"), handler("b", devices="cpu"), there=gpus(1)) == [None, None]
    assert threads(handler(workers_per_device=4, worker="thread"), there=gpus(0)) == [None] * 4


def test_what_the_user_set_stays() -> None:
    assert threads(handler(workers_per_device=4), there=gpus(0), OMP_NUM_THREADS="7") == [None] * 4


@pytest.mark.parametrize(
    ("quota", "limit"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_containers_quota_counts_as_cores(quota: str, limit: int | None, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    everything = cores(tmp_path / "none")
    assert cores(file) == (everything if limit is None else limit)
