"""Content codings: bodies that come compressed, and answers that are wanted so."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from functools import lru_cache

from tidegate_transports.messages import Response
from tidegate_transports.preferences import repeated
from tidegate_transports.problems import Refusal

__all__ = [
    "LARGE",
    "WORTHWHILE",
    "check_coding",
    "compress",
    "compress_aside",
    "inflated",
    "wanted_coding",
    "wants_gzip",
]

LARGE = 256 * 1024
"""From this many bytes on, work on a body leaves the event loop for a thread."""

WORTHWHILE = 1400
"""Below this many bytes an answer is sent as it is: it fits into one packet anyway."""

# zlib is slower than what else is done to a body, and what comes compressed may become a thousand times as much.
_SMALL_COMPRESSED = 4096
_SMALL_ANSWER = 32 * 1024
_PIECE = 64 * 1024
_MAX_MEMBERS = 1000
_GZIP = 31
_GZIP_OR_ZLIB = 47
_RAW = -15
_NAMES = {"gzip": _GZIP_OR_ZLIB, "x-gzip": _GZIP_OR_ZLIB, "deflate": _GZIP_OR_ZLIB}
_TEXTUAL = ("application/json", "application/problem+json", "text/", "application/openmetrics-text")


def check_coding(header: str) -> bool:
    """Whether a Content-Encoding means that the body is compressed; Refusal for a coding that is not known."""
    codings = [coding for one in header.lower().split(",") if (coding := one.strip()) not in ("", "identity")]
    if len(codings) > 1 or any(coding not in _NAMES for coding in codings):
        detail = f"Content-Encoding: {header[:100]} is not taken; send the body as it is, or by gzip or deflate alone"
        raise Refusal(415, "unsupported-content-encoding", detail, {"Accept-Encoding": "gzip, deflate"})
    return bool(codings)


async def inflated(body: bytes, limit: int) -> bytes:
    """A compressed body as it was; Refusal for one that is none, or would become more than `limit` bytes."""
    if len(body) <= _SMALL_COMPRESSED:
        return _inflate(body, limit)
    return await asyncio.to_thread(_inflate, body, limit)


def _inflate(body: bytes, limit: int) -> bytes:
    # What calls itself deflate is a zlib stream by the RFC, and a bare one in some clients' view.
    try:
        return _inflate_as(_GZIP_OR_ZLIB if _has_header(body) else _RAW, body, limit)
    except zlib.error as error:
        raise _malformed(str(error)) from None


def _has_header(body: bytes) -> bool:
    return body[:2] == b"\x1f\x8b" or (
        len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    )


def _inflate_as(window: int, body: bytes, limit: int) -> bytes:
    found = bytearray()
    stream = zlib.decompressobj(window)
    members, position = 1, 0
    while position < len(body):
        if stream.eof:
            # A gzip file may hold several members, one after the other.
            if window != _GZIP_OR_ZLIB or members == _MAX_MEMBERS or body[position : position + 2] != b"\x1f\x8b":
                raise _malformed(f"there is something behind its end (byte {position})")
            stream = zlib.decompressobj(window)
            members += 1
        piece = body[position : position + _PIECE]
        found += stream.decompress(piece, limit + 1 - len(found))
        if len(found) > limit:
            raise Refusal(413, "body-too-large", f"the body inflates to more than {limit} bytes")
        position += len(piece) - len(stream.unused_data) - len(stream.unconsumed_tail)
    if not stream.eof:
        raise _malformed(f"it ends too early (byte {len(body)})")
    return bytes(found)


def _malformed(why: str) -> Refusal:
    return Refusal(400, "malformed-body", f"the body is not what Content-Encoding says: {why}")


@lru_cache(maxsize=64)
def wants_gzip(header: str) -> bool:
    """Whether an Accept-Encoding asks for gzip, and not rather for the body as it is.

    Example:
        >>> wants_gzip("gzip, deflate, br"), wants_gzip("gzip;q=0, *"), wants_gzip("*;q=0.5"), wants_gzip("identity")
        (True, False, True, False)
    """
    weights: dict[str, float] = {}
    for one in header[:1024].lower().split(","):
        coding, _, parameter = one.partition(";")
        name, _, weight = parameter.partition("=")
        weights.setdefault(coding.strip(), _weight(weight) if name.strip() == "q" else 1.0)
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _weight(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0


def wanted_coding(response: Response, headers: Mapping[str, str]) -> bool:
    """Whether to compress this answer to a request with these headers; says in it that it depends on them."""
    # Numbers in binary hardly become less, and a stream is not to be held up.
    if len(response.body) < WORTHWHILE or not response.content_type.startswith(_TEXTUAL):
        return False
    vary = response.headers.get("Vary")
    response.headers["Vary"] = f"{vary}, Accept-Encoding" if vary else "Accept-Encoding"
    return wants_gzip(repeated(headers, "accept-encoding"))


def compress(response: Response) -> None:
    """Put the body into gzip."""
    # The fastest level: a caller that asks for it is usually a library that always asks.
    response.body = zlib.compress(response.body, 1, _GZIP)
    response.headers["Content-Encoding"] = "gzip"


async def compress_aside(response: Response) -> None:
    """The same, out of the event loop's way where it takes long."""
    if len(response.body) <= _SMALL_ANSWER:
        compress(response)
    else:
        await asyncio.to_thread(compress, response)
