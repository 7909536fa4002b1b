"""What a caller asks for in headers: a priority, how long it waits, and the trace that it belongs to.

None of these can make a request fail: what is malformed is passed over, as their specifications say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Wait", "priority_of", "repeated", "trace_of", "wait_of"]

DEFAULT_PRIORITY = 3

_MAX_HEADER = 1024
"""A longer header is passed over: nothing that is looked for here needs as much."""

# Structured fields (RFC 9651): a dictionary of items and inner lists, each with parameters.
_KEY = r"[a-z*][a-z0-9_.*-]*"
_BARE = (
    r"(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?"
    r'|"(?:[ !#-\[\]-~]|\\["\\])*"'
    r"|[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*"
    r"|:[A-Za-z0-9+/=]*:"
    r"|\?[01])"
)
_PARAMETERS = rf"(?:;[ ]*{_KEY}(?:={_BARE})?)*"
_INNER_LIST = rf"\([ ]*(?:{_BARE}{_PARAMETERS}(?:[ ]+(?={_BARE})|[ ]*(?=\))))*\)"
_MEMBER = re.compile(rf"({_KEY})(?:=({_BARE}|{_INNER_LIST}))?{_PARAMETERS}")
_COMMA = re.compile(r"[ \t]*,[ \t]*")

# RFC 7240: token [ BWS "=" BWS word ] *( OWS ";" [ OWS parameter ] ), of which only the first counts.
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_WORD = rf'(?:{_TOKEN}|"(?:[^"\\]|\\.)*")'
_PREFERENCE = re.compile(
    rf"[ \t]*({_TOKEN})(?:[ \t]*=[ \t]*({_WORD}))?"
    rf"(?:[ \t]*;(?:[ \t]*{_TOKEN}(?:[ \t]*=[ \t]*{_WORD})?)?)*[ \t]*(?:,|$)"
)
_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")

_TRACE = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")


class Wait(NamedTuple):
    """How many seconds a caller waits, and that in its own words."""

    seconds: float
    text: str


def repeated(headers: Mapping[str, str], name: str) -> str:
    """Everything that headers of one name say, as if it were one (RFC 9110, 5.3)."""
    get_all = getattr(headers, "getall", None)
    return headers.get(name, "") if get_all is None else ", ".join(get_all(name, ()))


@lru_cache(maxsize=256)
def priority_of(header: str) -> int:
    """The urgency in a `Priority` header (RFC 9218), 0 (first) to 7; 3 where it says none.

    Example:
        >>> priority_of("u=5, i"), priority_of("i"), priority_of("u=8"), priority_of("u=1, ?")
        (5, 3, 3, 3)
    """
    urgency, position = "", 0
    if len(header) > _MAX_HEADER:
        return DEFAULT_PRIORITY
    header = header.strip(" ")
    while True:
        member = _MEMBER.match(header, position)
        if member is None:
            # One fault, and the whole field means nothing.
            return DEFAULT_PRIORITY
        if member[1] == "u":
            urgency = member[2] or ""
        if member.end() == len(header):
            break
        comma = _COMMA.match(header, member.end())
        if comma is None:
            return DEFAULT_PRIORITY
        position = comma.end()
    return int(urgency) if len(urgency) == 1 and urgency in "01234567" else DEFAULT_PRIORITY


@lru_cache(maxsize=256)
def wait_of(header: str) -> Wait | None:
    """How long a `Prefer` header (RFC 7240) says that the caller waits; None where it says nothing that can be read.

    Example:
        >>> wait_of('respond-async, wait="2.5"; why=slow'), wait_of("wait=soon")
        (Wait(seconds=2.5, text='2.5'), None)
    """
    position = 0
    while position < len(header) <= _MAX_HEADER:
        preference = _PREFERENCE.match(header, position)
        if preference is None:
            # An empty element, or one that cannot be read: on to the next.
            position = header.find(",", position) + 1
            if not position:
                return None
            continue
        position = preference.end()
        if preference[1].lower() == "wait":
            text = (preference[2] or "").strip('"')
            # Of two with one name the first counts.
            return Wait(float(text), text) if _SECONDS.fullmatch(text) else None
    return None


def trace_of(header: str) -> str:
    """The id of the trace in a `traceparent` header (W3C Trace Context), "" where it is malformed.

    Example:
        >>> trace_of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        '0af7651916cd43dd8448eb211c80319c'
    """
    found = _TRACE.fullmatch(header) if len(header) <= _MAX_HEADER else None
    # Only a later version may say more than this one does.
    return found[2] if found and (found[1] != "00" or found[3] is None) else ""
