"""Tell which digit was spoken: recordings of any length as WAV files, padded to the longest of their batch.

    tidegate serve examples/speech.py
    python examples/speech.py
    python examples/speech.py --save seven.wav 7
    curl http://127.0.0.1:8000/digit --data-binary @seven.wav

The voices are espeak-ng's (`apt-get install espeak-ng`). Where it is missing, the digits are dialled instead of
spoken: as the two tones that a telephone sends for each. A small network learns them when the service starts. The
client asks about recordings that were not learned. What batching and grouping by length gain:

    python examples/gain_of_batching.py speech
"""

import argparse
import io
import shutil
import subprocess
import wave
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tidegate import Client, InvalidInput, pad, serve

RATE = 8000
"""Samples a second."""

FRAME = 128
"""Samples whose frequencies are looked at together: 16 ms."""

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

# ---------------------------------------------------------------------- recordings


class Voice(NamedTuple):
    """Somebody who speaks: espeak-ng's name for the voice, words a minute, and how high, from 0 to 99."""

    name: str
    speed: int
    pitch: int


NAMES = ["en", "en-us", "en+f2", "en-us+f4", "en+m3", "en-us+m7"]
LEARNED = [Voice(name, speed, pitch) for name in NAMES for speed, pitch in ((120, 40), (160, 55), (220, 50))]
HELD_OUT = [Voice(name, speed, pitch) for name in NAMES for speed, pitch in ((140, 50), (190, 45))]


def record(digit: int, voice: Voice) -> bytes:
    """A WAV file of somebody who says a digit, or dials it."""
    if not shutil.which("espeak-ng"):
        return to_wav(dialled(digit, voice))
    command = ["espeak-ng", "--stdout", "-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch), WORDS[digit]]
    return subprocess.run(command, capture_output=True, check=True).stdout


def dialled(digit: int, voice: Voice) -> np.ndarray:
    """The tones of a telephone's key, in a line that hums: the row's and the column's frequency. Some keys are held."""
    row, column = (3, 1) if digit == 0 else divmod(digit - 1, 3)
    time = np.arange((1 + digit % 3) * RATE * 60 // voice.speed) / RATE
    noise = np.random.default_rng(voice.speed + digit).normal(size=len(time))
    tones = [(697, 770, 852, 941)[row], (1209, 1336, 1477)[column]]
    return 0.1 * noise + sum(0.3 * np.sin(2 * np.pi * tone * time) for tone in tones)


def to_wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def from_wav(body: bytes) -> np.ndarray:
    """The samples of a WAV file, from -1 to 1 and RATE a second."""
    try:
        with wave.open(io.BytesIO(body)) as reader:
            form, rate = (reader.getnchannels(), reader.getsampwidth()), reader.getframerate()
            samples = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
    except (wave.Error, EOFError) as error:
        raise InvalidInput(f"not a WAV file: {error}") from None
    if form != (1, 2) or rate < RATE or len(samples) < rate // 10:
        raise InvalidInput(f"send one channel of 16 bits, {RATE} samples a second or more, for at least 0.1 s")
    # Good enough for words: a real service would take out what is above half the new rate first.
    places = np.arange(0, len(samples), rate / RATE)
    return np.interp(places, np.arange(len(samples)), samples / 32768).astype("float32")


# ---------------------------------------------------------------------- the model


class Net(nn.Module):
    """Waves (N, samples) of given lengths to the logits (N, 10) of the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FRAME))
        self.layers = nn.ModuleList([nn.Conv1d(FRAME // 2 + 1, 48, 5, padding=2), nn.Conv1d(48, 48, 5, padding=2)])
        self.last = nn.Linear(48, 10)

    def forward(self, waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        window: Any = self.window
        spectra = torch.stft(waves, FRAME, window=window, hop_length=FRAME, return_complex=True, pad_mode="constant")
        frames = (spectra.abs() + 0.01).log()  # (N, frequencies, frames): how loud each is, and when
        # What is padding must stay zero all the way: an answer may not depend on who else is in the batch.
        is_real = (torch.arange(frames.shape[2], device=waves.device) <= lengths[:, None] // FRAME)[:, None]
        for layer in self.layers:
            frames = layer(frames * is_real).relu()
        logits: torch.Tensor = self.last((frames * is_real).amax(dim=2))
        return logits


def train(device: str) -> Net:
    """Record the voices and learn them; a few seconds on one core."""
    # The network is too small to gain from a second thread, and on a busy machine two would wait for each other.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cards = [(digit, voice) for voice in LEARNED for digit in range(10)]
    padded, lengths = (torch.from_numpy(array).to(device) for array in pad([from_wav(record(*card)) for card in cards]))
    digits = torch.tensor([digit for digit, _ in cards], device=device)
    net = Net().to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss: torch.Tensor = nn.functional.cross_entropy(net(padded, lengths), digits)
        torch.autograd.backward(loss)
        optimizer.step()
    return net.eval()


# ---------------------------------------------------------------------- the handler


def length_class(body: bytes) -> int:
    """Equal for recordings of about one length, within a factor of two."""
    return len(body).bit_length()


# At most 64 recordings and 4 MB of WAV in a batch, which bounds the memory that their spectra take. With
# `group_by=length_class` there would be half as much padding, and fewer answers a second: so small a network spends its
# time on starting, and smaller batches make it start more often.
@serve(max_batch_size=64, max_batch_cost=4_000_000, cost=len, setup=train, batch=pad)
@torch.inference_mode()
def digit(net: Net, batch: tuple[np.ndarray, np.ndarray]) -> list[dict[str, object]]:
    """Padded waves (N, longest) and their lengths (N,) to the digit in each, and how sure the network is."""
    waves, lengths = (torch.from_numpy(array).to(net.last.weight.device) for array in batch)
    sure, found = net(waves, lengths).softmax(dim=1).max(dim=1)
    return [{"digit": one, "confidence": round(p, 3)} for one, p in zip(found.tolist(), sure.tolist(), strict=True)]


@digit.decode_request
def read(body: bytes) -> np.ndarray:
    """One recording, on a thread of its own while the network is busy with the last batch."""
    return from_wav(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--save", nargs=2, metavar=("FILE", "DIGIT"), help="only write a recording to a file")
    options = parser.parse_args()
    if options.save:
        file, spoken = options.save
        Path(file).write_bytes(record(int(spoken), HELD_OUT[0]))
        return

    cards = [(digit, voice) for voice in HELD_OUT for digit in range(10)]
    with Client(options.url) as client:
        answers = list(client.map([record(*card) for card in cards]))
    right = 0
    for (spoken, voice), answer in zip(cards, answers, strict=True):
        right += answer["digit"] == spoken
        if answer["digit"] != spoken:
            print(f"{voice.name} said {WORDS[spoken]}, understood was {WORDS[answer['digit']]}")
    print(f"{right} of {len(cards)} recordings understood")


if __name__ == "__main__":
    main()
