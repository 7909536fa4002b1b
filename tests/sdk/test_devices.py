import subprocess
import sys
from types import SimpleNamespace

import pytest

from tidegate.devices import default_device


@pytest.mark.parametrize(("available", "device"), [(True, "cuda:0"), (False, "cpu")])
def test_the_first_accelerator_is_taken_if_torch_sees_one(
    available: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: available)))
    assert default_device() == device


def test_without_torch_loaded_it_is_the_cpu_and_torch_stays_unloaded() -> None:
    code = (
        "import sys; from tidegate.devices import default_device\n"
        "assert default_device() == 'cpu' and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
