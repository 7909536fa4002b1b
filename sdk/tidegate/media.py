"""Media types: what a body is, what a caller accepts, and the errors about either."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from tidegate_batching import InvalidInput, TidegateError

__all__ = [
    "FORM",
    "JSON",
    "MSGPACK",
    "MSGPACK_NAMES",
    "MULTIPART",
    "NPY",
    "OCTETS",
    "EncodeError",
    "MalformedBody",
    "NotAcceptable",
    "UnsupportedMediaType",
    "choose",
    "parsed",
]

JSON = "application/json"
MSGPACK = "application/msgpack"
# All of these are in use, IANA's own (`vnd.msgpack`) least of all.
MSGPACK_NAMES = (MSGPACK, "application/x-msgpack", "application/vnd.msgpack")
NPY = "application/x-npy"
OCTETS = "application/octet-stream"
MULTIPART = "multipart/form-data"
FORM = "application/x-www-form-urlencoded"

_TOKEN = r"[\w!#$%&'*+.^`|~-]+"
_PARAMETER = re.compile(rf';\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;,"]*))')
_ESCAPED = re.compile(r"\\(.)")
_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")


class MalformedBody(InvalidInput):
    """The body cannot be parsed.

    Example:
        >>> MalformedBody().status, str(MalformedBody())
        (400, 'The body cannot be parsed')
    """

    code = "malformed-body"
    status = 400


class UnsupportedMediaType(TidegateError):
    """The body is of a type that the handler does not take.

    Example:
        >>> UnsupportedMediaType("text/html", ["application/json"]).detail
        'this handler takes application/json, and the body came as text/html'
    """

    code = "unsupported-media-type"
    status = 415

    def __init__(self, got: str, taken: Sequence[str], hint: str = "") -> None:
        text = f"this handler takes {', '.join(taken)}, and the body came as {got[:200]}"
        if got in taken:
            text = f"the body came as {got}, and it is none"
        super().__init__(f"{text}; {hint}" if hint else text)
        self.got = got
        self.taken = tuple(taken)


class NotAcceptable(TidegateError):
    """The answer exists in none of the types that the caller accepts.

    Example:
        >>> NotAcceptable("text/html", ["application/json"]).detail
        'Accept: text/html matches none of application/json'
    """

    code = "not-acceptable"
    status = 406

    def __init__(self, accept: str, offered: Sequence[str]) -> None:
        super().__init__(f"Accept: {accept[:200]} matches none of {', '.join(offered)}")
        self.accept = accept
        self.offered = tuple(offered)


class EncodeError(TidegateError):
    """The handler's output cannot be written.

    Example:
        >>> EncodeError("a number in it is not finite").status
        500
    """

    code = "unencodable-output"


def parsed(header: str) -> tuple[str, dict[str, str]]:
    """A header's value and its parameters, names in lower case.

    Example:
        >>> parsed('multipart/form-data; boundary="a b"')
        ('multipart/form-data', {'boundary': 'a b'})
    """
    value, semicolon, rest = header.partition(";")
    parameters: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(semicolon + rest):
        # The first wins, so that a second of the same name cannot change what the first said.
        parameters.setdefault(name.lower(), _ESCAPED.sub(r"\1", quoted) if quoted else plain.strip())
    return value.strip().lower(), parameters


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type that the caller likes best; of equals the one that is named most exactly, then the first.

    Raises NotAcceptable where none is accepted.

    Example:
        >>> choose("application/msgpack;q=0.9, */*;q=0.1", ["application/json", "application/msgpack"])
        'application/msgpack'
    """
    ranges = _ranges(accept) if accept else None
    if not ranges:
        return offered[0]
    best, (quality, _) = max(((media, _preference(ranges, media)) for media in offered), key=lambda found: found[1])
    if not quality:
        raise NotAcceptable(accept or "", offered)
    return best


@lru_cache(maxsize=64)
def _ranges(accept: str) -> dict[str, float]:
    """Every media range with its weight; what cannot be read is passed over."""
    ranges = {}
    for entry in accept.split(","):
        media, parameters = parsed(entry)
        weight = parameters.get("q", "1")
        if "/" in media and _QUALITY.fullmatch(weight):
            ranges[media] = float(weight)
    return ranges


def _preference(ranges: dict[str, float], media: str) -> tuple[float, int]:
    """The weight of the most exact range that covers this type (RFC 9110, 12.5.1), and how exact it is."""
    for exactness, media_range in ((2, media), (1, f"{media.partition('/')[0]}/*"), (0, "*/*")):
        if media_range in ranges:
            return ranges[media_range], exactness
    return 0.0, 0
