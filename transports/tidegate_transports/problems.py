"""Errors as callers read them (RFC 9457), and the ids by which they ask about them."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from tidegate_transports.messages import Response

__all__ = ["PROBLEM", "Refusal", "problem", "request_id_of"]

PROBLEM = "application/problem+json"

_SAFE_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")
# Ids need not be secret, only different: one drawn from the system each time would cost ten times as much.
_ids = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.seed)


class Refusal(Exception):
    """A request that is refused for its form, whatever it may ask of a handler."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's own id where it is safe to log and echo, else a new one."""
    request_id = headers.get("x-request-id")
    if request_id is not None and _SAFE_ID.fullmatch(request_id):
        return request_id
    return f"{_ids.getrandbits(64):016x}"


def problem(status: int, detail: str, code: str, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as RFC 9457 writes it, with `code` for programs and the request's id for the log."""
    document = {
        "type": "about:blank",
        "title": _title(status),
        "status": status,
        "detail": _printable(detail),
        "code": code,
        "request_id": request_id,
    }
    return Response(status, msgspec.json.encode(document), PROBLEM, {**(headers or {}), "X-Request-Id": request_id})


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == 499 else "Error"


def _printable(text: str) -> str:
    """Text that UTF-8 can write: a header or a file name may have brought half a surrogate pair along."""
    return text.encode("utf-8", "replace").decode()
