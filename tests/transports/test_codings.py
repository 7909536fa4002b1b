import gzip
import time
import tracemalloc
import zlib

import pytest

from tidegate_transports.codings import check_coding, inflated, wants_gzip
from tidegate_transports.problems import Refusal

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("header", "compressed"),
    [("", False), ("identity", False), ("gzip", True), (" GZip ", True), ("x-gzip", True), ("deflate, identity", True)],
)
def test_a_coding_that_is_known_says_whether_there_is_anything_to_undo(header: str, compressed: bool) -> None:
    assert check_coding(header) is compressed


@pytest.mark.parametrize("header", ["br", "zstd", "gzip, gzip", "gzip, deflate", "x" * 10_000])
def test_a_coding_that_is_not_known_is_told_in_short(header: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_coding(header)
    assert (caught.value.status, caught.value.code) == (415, "unsupported-content-encoding")
    assert len(caught.value.detail) < 300


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", False),
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("gzip; q=0.5", True),
        ("gzip;q=0.2, identity;q=0.8", False),
        ("identity", False),
        ("*;q=0", False),
        ("gzip;q=nonsense", False),
        ("br", False),
        ("GZIP;Q=1", True),
        ("x-gzip", True),
    ],
)
def test_gzip_is_sent_to_who_wants_it_most(header: str, wanted: bool) -> None:
    assert wants_gzip(header) is wanted


async def test_a_body_may_become_exactly_as_large_as_the_limit() -> None:
    for size in (0, 1, 999, 1000):
        assert await inflated(gzip.compress(bytes(size)), 1000) == bytes(size)
    with pytest.raises(Refusal) as caught:
        await inflated(gzip.compress(bytes(1001)), 1000)
    assert caught.value.status == 413


async def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(bytes(100_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(Refusal):
            await inflated(bomb, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("level", [0, 9])
async def test_long_bodies_of_any_ratio_are_read_whole(level: int) -> None:
    body = bytes(range(256)) * 4000
    assert await inflated(gzip.compress(body, level), 1 << 21) == body
    assert await inflated(zlib.compress(body, level), 1 << 21) == body
    assert await inflated(gzip.compress(body, level) + gzip.compress(b"x"), 1 << 21) == body + b"x"


async def test_a_body_of_endless_empty_members_is_given_up_soon() -> None:
    began = time.perf_counter()
    with pytest.raises(Refusal) as caught:
        await inflated(gzip.compress(b"") * 500_000, 1000)
    assert caught.value.status == 400
    assert time.perf_counter() - began < 5


async def test_a_broken_body_is_told_where() -> None:
    whole = gzip.compress(b"hello")
    for body, said in [(whole[:-1], "too early"), (whole + b"\x00", "behind its end"), (b"\x1f\x8bxx", "Error -3")]:
        with pytest.raises(Refusal) as caught:
            await inflated(body, 1000)
        assert (caught.value.status, caught.value.code) == (400, "malformed-body")
        assert said in caught.value.detail
