import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tidegate.nvml import Gpu, Nvml, Usage

WHOLE = {"uuid": "GPU-a1", "name": "NVIDIA H200", "memory": (143, 43, 100), "rates": 37, "celsius": 41}


class Library:
    """What nvidia-ml-py offers, over a list of GPUs; a key that a GPU lacks is something that it cannot tell."""

    def __init__(self, *gpus: Any) -> None:
        self.gpus = gpus
        self.inits = 0

    def nvmlInit(self) -> None:
        self.inits += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if self.gpus[index] is None:
            raise RuntimeError("GPU is lost")
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        return next(gpu for gpu in self.gpus if gpu is not None and gpu["uuid"] == uuid)

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return str(handle["uuid"])

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return str(handle["name"])

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip(("total", "used", "free"), handle["memory"], strict=True)))

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> SimpleNamespace:
        return SimpleNamespace(gpu=handle["rates"])

    def nvmlDeviceGetTemperatureV(self, handle: Any, sensor: int) -> int:
        return int(handle["celsius"])

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        return [1, 1] if "slices" in handle else [0, 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:
        return handle["slices"][index]


class OldLibrary(Library):
    """A driver without the newer call for the temperature."""

    nvmlDeviceGetTemperatureV = None  # type: ignore[assignment]

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        return int(handle["celsius"])


def test_every_gpu_is_told_with_name_and_memory_in_the_librarys_order() -> None:
    other = {"uuid": "GPU-b2", "name": "NVIDIA L4", "memory": (24, 0, 24)}
    assert Nvml(Library(WHOLE, other)).gpus() == [Gpu("GPU-a1", "NVIDIA H200", 143), Gpu("GPU-b2", "NVIDIA L4", 24)]


def test_a_gpu_that_cannot_be_read_keeps_its_place() -> None:
    assert Nvml(Library(None, WHOLE)).gpus() == [Gpu(""), Gpu("GPU-a1", "NVIDIA H200", 143)]


def test_a_gpu_that_does_not_tell_its_memory_is_there_all_the_same() -> None:
    assert Nvml(Library({"uuid": "GPU-c3", "name": "NVIDIA GB10"})).gpus() == [Gpu("GPU-c3", "NVIDIA GB10", 0)]


def test_a_gpu_in_mig_mode_is_told_with_its_slices_and_without_any_it_has_none() -> None:
    slices = [{"uuid": "MIG-1", "name": "NVIDIA A100 MIG 1g.5gb", "memory": (5, 0, 5)}]
    cut = {**WHOLE, "slices": slices}
    uncut = {**WHOLE, "uuid": "GPU-d4", "slices": []}
    gpus = Nvml(Library(cut, uncut)).gpus()
    assert gpus is not None
    assert [gpu.slices for gpu in gpus] == [(Gpu("MIG-1", "NVIDIA A100 MIG 1g.5gb", 5),), ()]


@pytest.mark.parametrize("library", [Library(WHOLE), OldLibrary(WHOLE)])
def test_usage_has_bytes_a_share_and_degrees(library: Library) -> None:
    assert Nvml(library).usage("GPU-a1") == Usage(43, 100, 0.37, 41.0)


def test_what_a_gpu_does_not_tell_is_none_and_nothing_raises() -> None:
    bare = {"uuid": "GPU-e5", "name": "", "memory": (5, 1, 4)}
    assert Nvml(Library(bare)).usage("GPU-e5") == Usage(1, 4, None, None)
    assert Nvml(Library()).usage("GPU-e5") == Usage()
    assert Nvml(object()).gpus() is None
    assert Nvml(object()).usage("GPU-e5") == Usage()


def test_a_gpu_that_was_away_is_found_again() -> None:
    library = Library(None)
    nvml = Nvml(library)
    assert nvml.usage("GPU-a1") == Usage()
    library.gpus = (WHOLE,)
    assert nvml.usage("GPU-a1").temperature == 41.0


def test_it_opens_the_library_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(WHOLE)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    nvml = Nvml.open()
    assert nvml is not None
    assert nvml.gpus() == [Gpu("GPU-a1", "NVIDIA H200", 143)]
    assert library.inits == 1


@pytest.mark.parametrize("library", [None, object()])
def test_without_the_package_or_with_one_that_fails_there_is_none(
    library: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert Nvml.open() is None
