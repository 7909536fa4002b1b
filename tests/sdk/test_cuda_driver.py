import ctypes
import json
import subprocess
import sys
import uuid
from typing import Any

import pytest

from tidegate import cuda_driver

FIRST = uuid.UUID("8932f937-d72c-4106-c12f-20bd9faed9f6")
SECOND = uuid.UUID("00000000-0000-0000-0000-000000000002")


class Driver:
    """libcuda for two GPUs, called as ctypes calls it."""

    def __init__(self, *names: bytes, error: int = 0) -> None:
        self.names = names
        self.error = error

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: ctypes.c_int) -> int:
        assert length == len(name)
        name.value = self.names[device.value]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: ctypes.c_int) -> int:
        memory._obj.value = (device.value + 1) * 2**35
        return 0

    def cuDeviceGetUuid(self, raw: Any, device: ctypes.c_int) -> int:
        raw._obj[:] = (FIRST, SECOND)[device.value].bytes
        return 0


class NewDriver(Driver):
    def cuDeviceGetUuid_v2(self, raw: Any, device: ctypes.c_int) -> int:
        return self.cuDeviceGetUuid(raw, device)


@pytest.mark.parametrize("driver", [Driver(b"NVIDIA L4", b"NVIDIA L40S"), NewDriver(b"NVIDIA L4", b"NVIDIA L40S")])
def test_the_gpus_come_in_cudas_order_with_uuids_as_the_environment_takes_them(driver: Driver) -> None:
    assert cuda_driver.answer(driver) == {
        "error": 0,
        "gpus": [
            {"uuid": f"GPU-{FIRST}", "name": "NVIDIA L4", "memory": 2**35},
            {"uuid": f"GPU-{SECOND}", "name": "NVIDIA L40S", "memory": 2**36},
        ],
    }


def test_a_slice_is_called_one() -> None:
    told = cuda_driver.answer(NewDriver(b"NVIDIA A100-SXM4-40GB MIG 1g.5gb"))
    assert told["gpus"][0]["uuid"] == f"MIG-{FIRST}"


def test_a_driver_that_knows_no_uuids_tells_the_rest() -> None:
    driver = Driver(b"Tegra")
    driver.cuDeviceGetUuid = lambda raw, device: 1  # type: ignore[method-assign]
    assert cuda_driver.answer(driver)["gpus"] == [{"uuid": "", "name": "Tegra", "memory": 2**35}]


@pytest.mark.parametrize(("error", "told"), [(100, 0), (3, 3), (999, 999)])
def test_no_device_is_an_answer_and_every_other_error_is_told(error: int, told: int) -> None:
    assert cuda_driver.answer(Driver(b"NVIDIA L4", error=error)) == {"error": told, "gpus": []}


def test_as_a_script_it_needs_nothing_but_python() -> None:
    code = (
        "import sys, json\n"
        f"before = set(sys.modules); sys.argv = [{cuda_driver.__file__!r}]\n"
        "import runpy; runpy.run_path(sys.argv[0])\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before} "
        "- set(sys.stdlib_module_names))))"
    )
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == []
