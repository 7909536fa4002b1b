import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import discovery
from tidegate.discovery import CPU, Device, Kind, Machine, discover
from tidegate.nvml import Gpu, Usage

H200 = [Gpu(f"GPU-{letter}{letter}{letter}", "NVIDIA H200", 143) for letter in "abcd"]
MIXED = [Gpu("GPU-1aa", "NVIDIA T4", 16), Gpu("GPU-1ab", "NVIDIA H200", 143), Gpu("GPU-2cc", "NVIDIA T4", 16)]
SLICES = (Gpu("MIG-11", "NVIDIA A100 MIG 3g.20gb", 20), Gpu("MIG-12", "NVIDIA A100 MIG 4g.20gb", 20))
CUT = [Gpu("GPU-cut", "NVIDIA A100", 40, SLICES), Gpu("GPU-whole", "NVIDIA A100", 40)]


class Fake:
    """A machine made of answers; notes who was asked."""

    def __init__(
        self,
        nvml: Sequence[Gpu] | None = None,
        driver: Sequence[Gpu] | None = None,
        torch: Sequence[tuple[Kind, Gpu]] = (),
    ) -> None:
        self._answers = nvml, driver, torch
        self.asked: list[str] = []

    def nvml(self) -> Sequence[Gpu] | None:
        self.asked.append("nvml")
        return self._answers[0]

    def driver(self, environ: Mapping[str, str]) -> Sequence[Gpu] | None:
        self.asked.append("driver")
        return self._answers[1]

    def torch(self, environ: Mapping[str, str]) -> Sequence[tuple[Kind, Gpu]]:
        self.asked.append("torch")
        return self._answers[2]

    def usage(self, uuid: str) -> Usage | None:
        return None


def masks(probe: Fake, **environ: str) -> list[str]:
    """What children would be given, one by one."""
    found = discover(environ, probe)
    assert found[-1] == CPU
    assert [device.index for device in found[:-1]] == list(range(len(found) - 1))
    return [device.mask for device in found[:-1]]


# ---------------------------------------------------------------------- who is asked


def test_nvml_is_asked_first_and_when_it_answers_nobody_else() -> None:
    probe = Fake(H200[:2])
    assert discover({}, probe) == (
        Device("cuda", 0, "GPU-aaa", "NVIDIA H200", 143),
        Device("cuda", 1, "GPU-bbb", "NVIDIA H200", 143),
        CPU,
    )
    assert probe.asked == ["nvml"]


def test_that_there_is_no_nvidia_gpu_is_an_answer_too() -> None:
    probe = Fake([], driver=H200)
    assert discover({}, probe) == (CPU,)
    assert probe.asked == ["nvml", "torch"]


def test_without_nvml_cudas_driver_is_asked() -> None:
    assert masks(Fake(None, driver=MIXED)) == ["GPU-1aa", "GPU-1ab", "GPU-2cc"]


def test_without_any_driver_there_is_the_cpu() -> None:
    assert discover({}, Fake()) == (CPU,)


def test_a_driver_without_uuids_gives_its_children_the_entries_of_the_mask_that_they_inherit() -> None:
    tegra = [Gpu("", "Orin"), Gpu("", "Orin")]
    assert masks(Fake(None, driver=tegra)) == ["0", "1"]
    assert masks(Fake(None, driver=tegra), CUDA_VISIBLE_DEVICES="3, 1") == ["3", "1"]


# ---------------------------------------------------------------------- CUDA_VISIBLE_DEVICES


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        ("0,1,2,3", "abcd"),
        ("2,0", "ca"),
        (" 1 , 3 ", "bd"),
        ("GPU-bbb,GPU-aaa", "ba"),
        ("GPU-b,GPU-d", "bd"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("all", ""),
        ("0,2,-1,1", "ac"),
        ("1,4,0", "b"),
        ("GPU-a,GPU-x,GPU-b", "a"),
        ("GPU-", ""),
        ("GPU-a,nonsense,GPU-b", "a"),
        ("aaa", ""),
        ("1gpu2,2ampere", "bc"),
    ],
)
def test_the_mask_is_read_as_cuda_reads_it(mask: str, seen: str) -> None:
    assert masks(Fake(H200), CUDA_VISIBLE_DEVICES=mask) == [f"GPU-{letter * 3}" for letter in seen]


@pytest.mark.parametrize("mask", ["0,0", "1,2,1", "GPU-a,GPU-aaa", "0,GPU-aaa"])
def test_a_gpu_named_twice_hides_all_from_cuda_so_it_is_an_error(mask: str) -> None:
    with pytest.raises(ValueError, match=rf"CUDA_VISIBLE_DEVICES={mask}: .* name each once"):
        discover({"CUDA_VISIBLE_DEVICES": mask}, Fake(H200))


def test_what_comes_after_an_invalid_entry_is_not_looked_at() -> None:
    assert masks(Fake(H200), CUDA_VISIBLE_DEVICES="0,-1,0") == ["GPU-aaa"]


def test_an_entry_that_cuts_the_list_by_mistake_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for mask in ("0,7,1", "GPU-a,GPU-zz"):
            discover({"CUDA_VISIBLE_DEVICES": mask}, Fake(H200))
    assert ["'7'" in caplog.messages[0], "'GPU-zz'" in caplog.messages[1]] == [True, True]
    caplog.clear()
    for mask in ("", "-1", "NoDevFiles", "0,-1"):
        discover({"CUDA_VISIBLE_DEVICES": mask}, Fake(H200))
    assert caplog.messages == []


@given(st.lists(st.integers(0, 3), unique=True))
def test_any_choice_of_gpus_is_seen_in_its_order_by_number_and_by_uuid(order: list[int]) -> None:
    expected = [H200[index].uuid for index in order]
    assert masks(Fake(H200), CUDA_VISIBLE_DEVICES=",".join(map(str, order))) == expected
    assert masks(Fake(H200), CUDA_VISIBLE_DEVICES=",".join(expected)) == expected


@given(st.text(alphabet="0123-, GPUMIGabcxyz+", max_size=20))
def test_no_mask_makes_it_fail_but_for_a_gpu_named_twice(mask: str) -> None:
    try:
        seen = masks(Fake(H200, driver=[]), CUDA_VISIBLE_DEVICES=mask)
    except ValueError as error:
        assert "name each once" in str(error)
    else:
        assert len(seen) == len(set(seen)) <= mask.count(",") + 1


# ---------------------------------------------------------------------- whose numbers


def test_gpus_of_several_models_are_numbered_by_cuda_itself() -> None:
    probe = Fake(MIXED, driver=[MIXED[1], MIXED[0], MIXED[2]])
    assert [str(device) for device in discover({}, probe)] == ["cuda:0", "cuda:1", "cuda:2", "cpu"]
    assert masks(probe) == ["GPU-1ab", "GPU-1aa", "GPU-2cc"]
    assert masks(Fake(MIXED, driver=[MIXED[1]]), CUDA_VISIBLE_DEVICES="0") == ["GPU-1ab"]


@pytest.mark.parametrize(
    ("gpus", "environ"),
    [
        (H200, {"CUDA_VISIBLE_DEVICES": "1,0"}),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        (MIXED, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "GPU-1ab,GPU-2"}),
        (MIXED, {"CUDA_VISIBLE_DEVICES": ""}),
        (MIXED[:1], {"CUDA_VISIBLE_DEVICES": "0"}),
    ],
)
def test_where_numbers_cannot_differ_no_process_is_started_to_ask(gpus: list[Gpu], environ: dict[str, str]) -> None:
    probe = Fake(gpus)
    discover(environ, probe)
    assert "driver" not in probe.asked


@pytest.mark.parametrize(
    ("gpus", "environ"),
    [
        (MIXED, {}),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "1"}),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}),
        (H200, {"CUDA_VISIBLE_DEVICES": "0,GPU-bbb"}),
        ([Gpu(""), *H200], {}),
        ([H200[0], H200[1]._replace(memory=80)], {}),
    ],
)
def test_where_they_could_differ_cuda_has_the_last_word(gpus: list[Gpu], environ: dict[str, str]) -> None:
    probe = Fake(gpus, driver=[H200[3]])
    assert masks(probe, **environ) == ["GPU-ddd"]


def test_where_nobody_can_tell_whose_number_it_is_the_child_gets_the_entry_as_it_was_written() -> None:
    assert masks(Fake(MIXED, driver=None), CUDA_VISIBLE_DEVICES="2,1") == ["2", "1"]
    assert masks(Fake(MIXED, driver=None)) == ["0", "1", "2"]


# ---------------------------------------------------------------------- MIG


def test_a_gpu_in_mig_mode_stands_for_its_slices() -> None:
    assert masks(Fake(CUT)) == ["MIG-11", "MIG-12", "GPU-whole"]
    assert masks(Fake(CUT), CUDA_VISIBLE_DEVICES="0") == ["MIG-11", "MIG-12"]
    assert masks(Fake(CUT), CUDA_VISIBLE_DEVICES="GPU-cut") == ["MIG-11", "MIG-12"]
    assert masks(Fake([CUT[0]._replace(slices=())])) == []


def test_where_there_are_slices_cuda_is_not_asked_since_it_would_show_one() -> None:
    several_models = [CUT[0], *MIXED]
    assert masks(Fake(several_models, driver=[SLICES[0]])) == ["MIG-11", "MIG-12", "GPU-1aa", "GPU-1ab", "GPU-2cc"]
    assert masks(Fake(several_models, driver=[SLICES[0]]), CUDA_VISIBLE_DEVICES="0,1") == [
        "MIG-11",
        "MIG-12",
        "GPU-1aa",
    ]


@pytest.mark.parametrize("mask", ["MIG-12,MIG-11", "MIG-12,MIG-99", "MIG-GPU-cut/1/0,MIG-GPU-cut/2/0"])
def test_slices_are_passed_on_as_they_were_named(mask: str) -> None:
    assert masks(Fake(CUT), CUDA_VISIBLE_DEVICES=mask) == mask.split(",")


def test_a_slice_is_taken_once() -> None:
    with pytest.raises(ValueError, match="name each once"):
        discover({"CUDA_VISIBLE_DEVICES": "0,MIG-12"}, Fake(CUT))


def test_a_slice_says_that_it_is_one() -> None:
    assert [device.is_slice for device in discover({}, Fake(CUT))] == [True, True, False, False]


# ---------------------------------------------------------------------- AMD and Apple

AMD: list[tuple[Kind, Gpu]] = [("rocm", Gpu(f"GPU-{n}", "AMD Instinct MI300X", 192)) for n in range(2)]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["0", "1"]),
        ({"HIP_VISIBLE_DEVICES": "3,1"}, ["3", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "5,6"}, ["5", "6"]),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "5,6"}, ["5", "6"]),
        ({"HIP_VISIBLE_DEVICES": "3,1", "CUDA_VISIBLE_DEVICES": "5,6"}, ["3", "1"]),
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, ["0", "1"]),
    ],
)
def test_amd_gpus_are_named_by_their_entries_within_what_rocr_leaves(
    environ: dict[str, str], expected: list[str]
) -> None:
    probe = Fake(torch=AMD)
    assert masks(probe, **environ) == expected
    assert [str(device) for device in discover(environ, probe)] == ["cuda:0", "cuda:1", "cpu"]


def test_apples_gpu_is_one() -> None:
    found = discover({}, Fake(torch=[("mps", Gpu("", "Apple GPU", 10))]))
    assert [str(device) for device in found] == ["mps", "cpu"]


# ---------------------------------------------------------------------- the real machine


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the scripts that ask the driver and torch."""
    monkeypatch.setattr(discovery, "__file__", str(tmp_path / "discovery.py"))
    monkeypatch.setattr(discovery, "LIBRARY", None)  # ctypes: the program itself, which is always there
    (tmp_path / "torch_devices.py").symlink_to(tmp_path / "cuda_driver.py")
    return tmp_path / "cuda_driver.py"


def printing(value: object) -> str:
    return f"print({json.dumps(value)!r})"


def test_the_driver_is_asked_in_a_process_that_sees_the_given_environment(script: Path) -> None:
    gpu = "{'uuid': os.environ['CUDA_VISIBLE_DEVICES'], 'name': 'L4', 'memory': 24}"
    script.write_text(f"import os, json\nprint(json.dumps({{'error': 0, 'gpus': [{gpu}]}}))")
    assert Machine().driver({**os.environ, "CUDA_VISIBLE_DEVICES": "GPU-x"}) == [Gpu("GPU-x", "L4", 24)]


def test_an_error_of_the_driver_is_told_and_means_none(script: Path, caplog: pytest.LogCaptureFixture) -> None:
    script.write_text(printing({"error": 999, "gpus": []}))
    assert Machine().driver(os.environ) == []
    assert caplog.messages == ["CUDA's driver shows no GPU: error 999"]


@pytest.mark.parametrize("source", ["raise SystemExit('broken')", "print('no json')", "import os; os.abort()"])
def test_a_process_that_fails_is_no_answer_and_told(
    source: str, script: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script.write_text(source)
    assert Machine().driver(os.environ) is None
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("cuda_driver.py could not look for devices: ")


def test_a_process_that_hangs_is_given_up(
    script: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discovery, "_PROBE_SECONDS", 0.2)
    script.write_text("import signal; signal.pause()")
    assert Machine().driver(os.environ) is None
    assert "timed out" in caplog.messages[0]


def test_without_cudas_library_no_process_is_started(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "LIBRARY", "libthere-is-none.so.1")
    assert Machine().driver(os.environ) is None


def test_torch_is_asked_for_amd_gpus_only_where_the_kernel_has_them(
    script: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script.write_text(printing([{"kind": "rocm", "uuid": "GPU-0", "name": "MI300X", "memory": 192}]))
    assert Machine(system="linux", kernel_driver=tmp_path / "none").torch(os.environ) == []
    assert Machine(system="linux", kernel_driver=tmp_path).torch(os.environ) == [("rocm", Gpu("GPU-0", "MI300X", 192))]


def test_torch_for_rocm_that_is_loaded_is_asked_too(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(version=SimpleNamespace(hip="6.4")))
    script.write_text(printing([{"kind": "rocm", "uuid": "GPU-0", "name": "MI300X", "memory": 192}]))
    assert len(Machine(system="linux", kernel_driver=tmp_path / "none").torch(os.environ)) == 1


@pytest.mark.parametrize(("available", "count"), [(True, 1), (False, 0)])
def test_on_a_mac_torch_that_is_loaded_answers_itself(
    available: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mps = SimpleNamespace(is_available=lambda: available)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(backends=SimpleNamespace(mps=mps)))
    assert len(Machine(system="darwin").torch(os.environ)) == count


def test_looking_at_this_machine_loads_no_torch_and_without_gpu_starts_no_process() -> None:
    code = (
        "import os, sys, subprocess\n"
        "import tidegate.discovery as d\n"
        "machine = d.Machine()\n"
        "gpus = machine.nvml()\n"
        "if not gpus: subprocess.run = None\n"
        "found = d.discover(os.environ, machine)\n"
        "assert found[-1] == d.CPU and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
