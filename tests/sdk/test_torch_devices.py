import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tidegate import torch_devices

MI300X = SimpleNamespace(name="AMD Instinct MI300X", total_memory=192, uuid="0badcafe")


def torch(*, hip: str | None = None, metal: bool = False, gpus: tuple[Any, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(
        version=SimpleNamespace(hip=hip),
        cuda=SimpleNamespace(device_count=lambda: len(gpus), get_device_properties=lambda index: gpus[index]),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: metal)),
        mps=SimpleNamespace(recommended_max_memory=lambda: 10),
    )


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        (torch(), []),
        (torch(gpus=(MI300X,)), []),  # CUDA's own are not its business
        (
            torch(hip="6.4", gpus=(MI300X,)),
            [{"kind": "rocm", "uuid": "GPU-0badcafe", "name": "AMD Instinct MI300X", "memory": 192}],
        ),
        (
            torch(hip="5.0", gpus=(SimpleNamespace(name="MI50", total_memory=16),)),
            [{"kind": "rocm", "uuid": "", "name": "MI50", "memory": 16}],
        ),
        (torch(metal=True), [{"kind": "mps", "uuid": "", "name": "Apple GPU", "memory": 10}]),
    ],
)
def test_torch_tells_of_amds_and_apples_gpus(
    installed: SimpleNamespace, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", installed)
    assert torch_devices.answer() == told
