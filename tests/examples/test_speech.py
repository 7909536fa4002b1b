import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from tidegate import Client, InvalidInput

Ask = Callable[..., str]
Served = Callable[[str], AbstractContextManager[str]]

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "speech.py"
CURL = shutil.which("curl") or "curl"
SPEAKING = pytest.param("spoken", marks=pytest.mark.skipif(not shutil.which("espeak-ng"), reason="no espeak-ng here"))


@pytest.fixture(params=[SPEAKING, "dialled"])
def recordings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Voices where espeak-ng is, and the telephone's tones everywhere."""
    if request.param == "dialled":
        (tmp_path / "python").symlink_to(sys.executable)
        monkeypatch.setenv("PATH", str(tmp_path))


def later(file: Path) -> bytes:
    """The recording with a second of silence before it."""
    longer = io.BytesIO()
    with wave.open(str(file)) as reader, wave.open(longer, "wb") as writer:
        writer.setparams(reader.getparams())
        # espeak-ng writes to a pipe and cannot say how much it will be.
        writer.writeframes(bytes(2 * reader.getframerate()) + reader.readframes(reader.getnframes()))
    return longer.getvalue()


@pytest.mark.usefixtures("recordings")
def test_recordings_of_any_length_are_understood_alone_and_in_company(served: Served, ask: Ask, tmp_path: Path) -> None:
    with served("speech") as url:
        right = re.search(r"^(\d+) of 120 recordings understood$", ask("speech", url), re.MULTILINE)
        file = tmp_path / "seven.wav"
        ask("speech", "--save", str(file), "7")
        curl = [CURL, "--silent", f"{url}/digit", "--data-binary", f"@{file}"]
        pasted = subprocess.run(curl, capture_output=True, text=True, check=True, timeout=30).stdout
        # A second of silence before it, and it is another length.
        recordings = [file.read_bytes(), later(file)]
        with Client(f"{url}/digit") as client:
            alone = [client.call(one) for one in recordings]
            together = list(client.map(recordings * 10))
            with pytest.raises(InvalidInput, match="not a WAV file"):
                client.call(b"seven")
    assert right
    assert int(right[1]) >= 114
    assert json.loads(pasted) == alone[0]
    assert alone[0]["digit"] == 7
    for one, other in zip(together, alone * 10, strict=True):
        assert one["confidence"] == pytest.approx(other["confidence"], abs=2e-3)


def test_padding_changes_no_answer() -> None:
    spec = importlib.util.spec_from_file_location("speech_example", SCRIPT)
    assert spec
    assert spec.loader
    speech = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speech)
    torch.manual_seed(0)
    net, wave = speech.Net().eval(), torch.randn(1, 3000)
    with torch.inference_mode():
        alone = net(wave, torch.tensor([3000]))
        padded = net(torch.nn.functional.pad(wave, (0, 5000)), torch.tensor([3000]))
    assert padded.tolist() == [pytest.approx(alone[0].tolist(), abs=1e-4)]
