"""Typical handlers as users write them; mypy --strict and pyright find nothing in them."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, assert_type

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from tidegate import END, SKIP, App, Handler, HTTPError, LocalClient, current_batch, serve
from tidegate.local import AsyncLocalClient
from tidegate.sentinels import Sentinel

Floats = npt.NDArray[np.float32]


class Sentence(msgspec.Struct):
    text: str
    language: str = "en"


@dataclass
class Label:
    name: str
    score: float


# ---------------------------------------------------------------------- functions


@serve
def shout(text: str) -> str:
    return text.upper()


handler: Handler[[str], str] = shout
assert_type(shout("a"), str)
assert_type(shout(text="a"), str)


@serve()
def whisper(text: str) -> str:
    return text.lower()


assert_type(whisper("A"), str)


@serve(max_batch_size=32, batch_timeout=0.005)
def square(x: Floats) -> Floats:
    return x**2


assert_type(square(np.zeros((1, 2), np.float32)), Floats)


@serve(max_batch_size=8, batch_dim=(0, 1))
def scale(x: torch.Tensor, by: float = 2.0, *, plus: float = 0.0) -> torch.Tensor:
    return x * by + plus


assert_type(scale(torch.zeros(1), 3.0, plus=1.0), torch.Tensor)
assert_type(scale.name, str)
assert_type(scale.batched, bool)


class Model:
    def encode(self, texts: list[str]) -> Floats:
        return np.zeros((len(texts), 2), np.float32)


def load_model(device: str) -> Model:
    return Model()


@serve(max_batch_size=32, setup=load_model, forward_headers=["X-Tenant"], devices="cpu", warmup="hello")
def embed(model: Model, texts: list[str]) -> Floats:
    return model.encode(texts)


def look() -> None:
    batch = current_batch()
    assert_type(batch.size, int)
    assert_type(batch.items[0].deadline, float)
    assert_type(batch.items[0].cancelled, bool)


assert_type(embed(Model(), ["a"]), Floats)


# ---------------------------------------------------------------------- hooks


@serve(max_batch_size=8, max_batch_cost=100, cost=len, group_by=lambda value: len(value))
def classify(batch: list[str]) -> list[Label]:
    if not batch[0]:
        raise HTTPError(400, "no text")
    return [Label(text, 0.5) for text in batch]


@classify.decode_request
def read(body: Sentence) -> str:
    return body.text


@classify.batch
def gather(items: list[str]) -> list[str]:
    return sorted(items)


@classify.unbatch
def part(output: list[Label]) -> Iterator[Label]:
    yield from output


@classify.encode_response
def write(output: Label) -> dict[str, str | float]:
    return {"name": output.name, "score": output.score}


hook_read: Callable[[Sentence], str] = read
assert_type(read(Sentence("a")), str)
assert_type(gather(["a"]), list[str])
assert_type(part([]), Iterator[Label])
assert_type(write(Label("a", 1.0)), dict[str, str | float])


# ---------------------------------------------------------------------- classes


@serve(max_batch_size=16, workers_per_device=2)
class Classifier:
    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def setup(self, device: str) -> None:
        self.model = load_model(device)

    def predict(self, texts: list[str]) -> Floats:
        return self.model.encode(texts)


assert_type(Classifier, type[Classifier])
assert_type(Classifier(0.7), Classifier)
assert_type(Classifier().threshold, float)
classifier = Classifier()
classifier.setup("cpu")
assert_type(classifier.predict(["a"]), Floats)


@serve
class Echo:
    def predict(self, text: str) -> str:
        return text


assert_type(Echo(), Echo)


# ---------------------------------------------------------------------- streams, async


@serve
def count(to: int) -> Iterator[int]:
    yield from range(to)


assert_type(count(3), Iterator[int])


@serve(max_batch_size=4)
def tokens(prompts: list[str]) -> Iterator[list[str | Literal[Sentinel.END, Sentinel.SKIP]]]:
    yield list(prompts)
    yield [END if prompt else SKIP for prompt in prompts]


@serve(concurrency=8)
async def relay(url: str) -> AsyncIterator[bytes]:
    yield url.encode()


@serve
async def fetch(url: str) -> bytes:
    return url.encode()


async def use_async() -> None:
    assert_type(await fetch("x"), bytes)
    async for chunk in relay("x"):
        assert_type(chunk, bytes)


# ---------------------------------------------------------------------- where handlers go

app = App(shout, square, embed, classify, Classifier, Echo, count, tokens, relay, fetch, http="127.0.0.1:8000")
handlers: list[Handler[..., Any]] = [shout, square, embed, classify, fetch]


def use() -> None:
    with LocalClient(square, Classifier) as client:
        assert_type(client, LocalClient)
        client.call([1.0], handler="square", timeout=1.0, priority=0)
        for output in client.map([[1.0]], handler="square", return_exceptions=True):
            assert_type(output, Any)
        for chunk in client.stream(3, handler="count"):
            assert_type(chunk, Any)


async def use_asynchronously() -> None:
    async with LocalClient(count) as client:
        assert_type(client, AsyncLocalClient)
        await client.call(3)
        async for chunk in client.stream(3):
            assert_type(chunk, Any)
    async with app:
        await app.call("shout", "a")
