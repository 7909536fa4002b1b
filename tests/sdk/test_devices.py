import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from tidegate import serve
from tidegate.devices import Device, DeviceManager, Usage, cuda_context_made
from tidegate.discovery import CPU, Kind, Machine
from tidegate.handler import Handler
from tidegate.nvml import Gpu

Test = TypeVar("Test", bound=Callable[..., None])


class Fake:
    """A machine with these GPUs, that counts how often it is looked at."""

    def __init__(self, *gpus: Gpu, usage: Mapping[str, Usage | None] | None = None) -> None:
        self.gpus = gpus
        self.told = usage or {}
        self.looks = 0

    def nvml(self) -> Sequence[Gpu] | None:
        self.looks += 1
        return self.gpus

    def driver(self, environ: Mapping[str, str]) -> Sequence[Gpu] | None:
        return None

    def torch(self, environ: Mapping[str, str]) -> Sequence[tuple[Kind, Gpu]]:
        return ()

    def usage(self, uuid: str) -> Usage | None:
        return self.told.get(uuid)


TWO = (Gpu("GPU-a", "NVIDIA L4", 24), Gpu("GPU-b", "NVIDIA L4", 24))


def handler(**options: Any) -> Handler[..., Any]:
    def f(x: Any) -> Any:
        return x

    return serve(**options)(f)


# ---------------------------------------------------------------------- the manager


def test_devices_are_looked_for_once_and_only_when_they_are_needed() -> None:
    probe = Fake(*TWO)
    manager = DeviceManager.discover({}, probe)
    assert probe.looks == 0
    assert [str(device) for device in manager.devices] == ["cuda:0", "cuda:1", "cpu"]
    assert len(manager.plan([handler()])["f"]) == 2
    assert probe.looks == 1


def test_who_wants_only_the_cpu_is_not_kept_waiting_for_what_else_there_is() -> None:
    probe = Fake(*TWO)
    (placed,) = DeviceManager.discover({}, probe).plan([handler(devices="cpu")])["f"]
    assert placed.devices == (CPU,)
    assert probe.looks == 0


def test_the_environment_is_this_process_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    here = DeviceManager.discover(probe=Fake(*TWO))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # as it was when discovery was asked for
    assert [device.uuid for device in here.devices] == ["GPU-b", ""]
    elsewhere = DeviceManager.discover({"CUDA_VISIBLE_DEVICES": "0"}, Fake(*TWO))
    assert [device.uuid for device in elsewhere.devices] == ["GPU-a", ""]


def test_a_test_says_which_devices_there_are_and_the_cpu_is_always_one() -> None:
    gpu = Device("cuda", 0, "GPU-a")
    assert DeviceManager([gpu]).devices == (gpu, CPU)
    assert DeviceManager([gpu, CPU]).devices == (gpu, CPU)
    assert DeviceManager([]).devices == (CPU,)


def test_a_handler_runs_in_a_process_unless_the_caller_says_otherwise() -> None:
    manager = DeviceManager([Device("cuda", 1, "GPU-b")], environ={})
    assert manager.plan([handler()])["f"][0].setup_argument == "cuda:0"
    assert manager.plan([handler()], "thread")["f"][0].setup_argument == "cuda:1"


def test_usage_is_told_of_each_gpu_that_nvml_knows() -> None:
    told = Usage(memory_used=1, memory_free=23, utilisation=0.5, temperature=40.0)
    manager = DeviceManager.discover({}, Fake(*TWO, usage={"GPU-a": told, "GPU-b": Usage()}))
    assert manager.usage() == {manager.devices[0]: told}


def test_usage_is_empty_without_nvml_and_never_raises() -> None:
    assert DeviceManager([Device("cuda", 0, "GPU-a")]).usage() == {}
    assert DeviceManager.discover({}, Fake(*TWO)).usage() == {}
    assert DeviceManager.discover({"CUDA_VISIBLE_DEVICES": "0,0"}, Fake(*TWO)).usage() == {}


# ---------------------------------------------------------------------- what torch has done here


@pytest.mark.parametrize(
    ("torch", "made"),
    [
        (None, False),
        (SimpleNamespace(), False),
        (SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False)), False),
        (SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True)), True),
    ],
)
def test_a_context_is_one_that_torch_has_made(torch: Any, made: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert cuda_context_made() is made


def test_without_torch_loaded_there_is_no_context_and_torch_stays_unloaded() -> None:
    code = (
        "import sys; from tidegate.devices import cuda_context_made\n"
        "assert not cuda_context_made() and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------- on a GPU

# Not by way of the discovery that is tested here.
HAS_GPU = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def on_gpu(test: Test) -> Test:
    without = pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA driver here")
    marked: Test = pytest.mark.gpu(without(test))
    return marked


SEEN = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
each = [torch.cuda.get_device_properties(index) for index in range(count)]
print(json.dumps([[f"GPU-{one.uuid}", one.name] for one in each]))
"""


def python(code: str, environ: Mapping[str, str]) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code], env=dict(environ), capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def seen_by_torch(environ: Mapping[str, str]) -> list[list[str]]:
    seen: list[list[str]] = json.loads(python(SEEN, environ))
    return seen


def masked(mask: str | None) -> dict[str, str]:
    """This environment with that mask; `{}` in it stands for the first GPU's UUID, `{short}` for its beginning."""
    first = DeviceManager.discover().devices[0].uuid
    rest = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    return rest if mask is None else {**rest, "CUDA_VISIBLE_DEVICES": mask.format(first, short=first[:12])}


@cache
def seen_under(mask: str | None) -> list[list[str]]:
    return seen_by_torch(masked(mask))


class WithoutNvml(Machine):
    def nvml(self) -> Sequence[Gpu] | None:
        return None


@pytest.mark.parametrize("probe", [Machine, WithoutNvml])
@pytest.mark.parametrize(
    "mask", [None, "0", " 0", "0gpu", "{}", "{short}", "{},9", "0,-1", "9,0", "", "-1", "NoDevFiles"]
)
@on_gpu
def test_it_finds_what_torch_sees_in_the_same_order(mask: str | None, probe: type[Machine]) -> None:
    pytest.importorskip("torch")
    environ = masked(mask)
    found = DeviceManager.discover(environ, probe()).devices[:-1]
    assert [[device.uuid, device.name] for device in found] == seen_under(mask)


@on_gpu
def test_nvml_and_cudas_driver_tell_the_same() -> None:
    pytest.importorskip("pynvml")
    environ = masked(None)
    by_nvml = DeviceManager.discover(environ).devices[:-1]
    by_driver = DeviceManager.discover(environ, WithoutNvml()).devices[:-1]
    assert [(one.uuid, one.name) for one in by_nvml] == [(one.uuid, one.name) for one in by_driver]
    for one, other in zip(by_nvml, by_driver, strict=True):
        assert one.memory == pytest.approx(other.memory, rel=0.05)


@on_gpu
def test_cuda_shows_nothing_when_a_gpu_is_named_twice() -> None:
    assert not Machine().driver(masked("0,0"))
    with pytest.raises(ValueError, match="name each once"):
        _ = DeviceManager.discover(masked("0,0")).devices


@on_gpu
def test_looking_makes_no_context_and_does_not_load_torch() -> None:
    pytest.importorskip("pynvml")
    code = (
        "import os, sys, pynvml; from tidegate.devices import DeviceManager\n"
        "manager = DeviceManager.discover(); manager.devices, manager.usage()\n"
        "assert 'torch' not in sys.modules\n"
        "pynvml.nvmlInit()\n"
        "gpus = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))\n"
        "assert os.getpid() not in [p.pid for gpu in gpus for p in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)]"
    )
    # By UUID: several models would be a reason to ask the driver.
    python(code, masked("{}"))


@on_gpu
def test_each_process_sees_exactly_its_own_gpu() -> None:
    pytest.importorskip("torch")
    manager = DeviceManager.discover()
    count = len(manager.devices) - 1
    placed = manager.plan([handler(workers_per_device=2)])["f"]
    assert len(placed) == 2 * count
    for one in placed:
        (device,) = one.devices
        assert seen_by_torch({**os.environ, **one.environment}) == [[device.uuid, device.name]]
        assert one.setup_argument == "cuda:0"


@on_gpu
def test_a_process_with_every_gpu_sees_them_in_the_order_of_its_devices() -> None:
    pytest.importorskip("torch")
    manager = DeviceManager.discover()
    backwards = [device.index for device in reversed(manager.devices[:-1])]
    (one,) = manager.plan([handler(devices=backwards, devices_per_worker=len(backwards))])["f"]
    seen = seen_by_torch({**os.environ, **one.environment})
    assert [uuid for uuid, _ in seen] == list(one.uuids)


@on_gpu
def test_a_process_on_the_cpu_sees_no_gpu() -> None:
    pytest.importorskip("torch")
    (one,) = DeviceManager.discover().plan([handler(devices="cpu")])["f"]
    assert seen_by_torch({**os.environ, **one.environment}) == []


@on_gpu
def test_usage_follows_what_another_process_holds() -> None:
    pytest.importorskip("pynvml")
    pytest.importorskip("torch")
    manager = DeviceManager.discover()
    device = manager.devices[0]
    before = manager.usage()[device]
    with holding(2**30, device):
        during = manager.usage()[device]
    assert before.memory_used is not None
    assert before.memory_free is not None
    assert during.memory_used is not None
    assert before.memory_used + before.memory_free == pytest.approx(device.memory, rel=0.05)
    assert during.memory_used - before.memory_used >= 2**30
    assert during.utilisation is None or 0 <= during.utilisation <= 1
    assert during.temperature is None or 0 < during.temperature < 120


@on_gpu
def test_only_work_on_the_gpu_makes_a_context() -> None:
    pytest.importorskip("torch")
    code = (
        "import torch; from tidegate.devices import cuda_context_made\n"
        "torch.cuda.is_available(), torch.cuda.device_count(), torch.zeros(1)\n"
        "assert not cuda_context_made()\n"
        "torch.zeros(1, device='cuda')\n"
        "assert cuda_context_made()"
    )
    python(code, os.environ)


@contextmanager
def holding(size: int, device: Device) -> Iterator[None]:
    """Another process keeps so many bytes of the GPU meanwhile."""
    code = f"import torch; held = torch.zeros({size}, dtype=torch.uint8, device='cuda'); print('held', flush=True); input()"
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": device.mask}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate("\n", timeout=60)
