"""Tests of a handler, as its author would write them.

    pytest examples/testing_a_handler.py

They go through the real batcher and the real hooks, in this process: no server, no port, no waiting.
"""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from tidegate import App, Client, HTTPError, InvalidInput, LocalClient, pad, serve
from tidegate.testing import request, serve_batch

# ---------------------------------------------------------------------- in your project: from app import loudness


def full_scale(device: str) -> float:
    """Stands for a model that takes a while to load."""
    return 1.0


@serve(max_batch_size=32, setup=full_scale, batch=pad)
def loudness(reference: float, batch: tuple[np.ndarray, np.ndarray]) -> list[float | Exception]:
    """Waves of any length to decibels."""
    waves, lengths = batch
    power = (waves**2).sum(axis=1) / lengths
    # An exception in an item's place is that caller's answer alone.
    return [10 * np.log10(one / reference) if one else HTTPError(422, "silence has no loudness") for one in power]


@loudness.decode_request
def read(samples: list[float]) -> np.ndarray:
    return np.array(samples)


# ---------------------------------------------------------------------- the tests


def test_the_function_itself_needs_nothing() -> None:
    waves = np.array([[1.0, -1.0], [0.1, 0.0]])
    assert loudness(1.0, (waves, np.array([2, 1]))) == pytest.approx([0, -20])


def test_callers_at_the_same_time_get_their_own_answers_in_their_order() -> None:
    assert serve_batch(loudness, [[1.0], [0.1, -0.1], [0.01]]) == pytest.approx([0, -20, -40])


def test_an_answer_does_not_depend_on_its_company() -> None:
    """The test that finds padding which leaks into the result."""
    waves = [[0.5] * length for length in (1, 7, 300)]
    alone = [serve_batch(loudness, [wave])[0] for wave in waves]
    assert serve_batch(loudness, waves) == pytest.approx(alone)


def test_a_bad_item_fails_alone() -> None:
    good, bad = serve_batch(loudness, [[1.0], [0.0]], return_exceptions=True)
    assert good == 0
    assert (type(bad), bad.status, bad.detail) == (HTTPError, 422, "silence has no loudness")


def test_bytes_go_in_and_out_as_over_http() -> None:
    assert request(loudness, [b"[1, -1]", b"[0.1]"]) == [b"0.0", b"-20.0"]
    with pytest.raises(InvalidInput, match="Expected `array`, got `str`"):
        request(loudness, [b'"loud"'])


# One client for several tests loads the model once.


@pytest.fixture(scope="module")
def client() -> Iterator[LocalClient]:
    with LocalClient(loudness) as client:
        yield client


def test_a_client_may_be_shared(client: LocalClient) -> None:
    assert client.call([1.0]) == 0


def test_many_items_in_few_batches(client: LocalClient) -> None:
    assert len(list(client.map([[0.5]] * 1000))) == 1000


def test_it_is_served() -> None:
    """Once at least: with the worker processes and the HTTP of production, at a free port."""

    async def served() -> float:
        async with App(loudness, http="127.0.0.1:0") as app, Client(app.transports[0].url) as client:
            decibels: float = await client.call([0.1])
            return decibels

    assert asyncio.run(served()) == pytest.approx(-20)
