"""HTTP/1.1 responses from bytes, as far as somebody who counts them needs: no clock, no socket."""

from __future__ import annotations

import re

__all__ = ["BrokenResponse", "ResponseReader"]

MAX_HEAD = 64 * 1024
MAX_SIZE_LINE = 1024
KEPT = 64 * 1024
"""Bytes of a body's end that are kept: an error, or a stream's last line."""

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [^\r\n]*)?\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*(?:[^\r\n]*,[ \t]*)?chunked[ \t]*\r\n")
_CLOSE = re.compile(rb"\r\nconnection:[^\r\n]*\bclose\b")
_KEEP = re.compile(rb"\r\nconnection:[^\r\n]*\bkeep-alive\b")
_LINES = re.compile(rb"\r\ncontent-type:[ \t]*(?:application/x-ndjson|text/event-stream)")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")


class BrokenResponse(Exception):
    """What came is no HTTP/1.1 response."""


class ResponseReader:
    """One response after another on one connection; there is never more than one request under way.

    After `feed` or `feed_eof` has said True, `status`, `tail` and the rest are the response's, until more is fed.

    Example:
        >>> reader = ResponseReader()
        >>> reader.feed(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhel"), reader.feed(b"lo")
        (False, True)
        >>> reader.status, reader.keep_alive, reader.tail
        (200, True, b'hello')
    """

    def __init__(self) -> None:
        self.status = 0
        self.keep_alive = False
        self.is_lines = False
        self.tail = b""
        self._buffer = b""
        # Of the body: how much is still to come, -1 until its end is found by chunks, -2 until the connection closes.
        self._left = 0
        self._in_body = False
        self._chunk = 0
        self._chunk_ended = False
        self._trailers = False

    @property
    def has_begun(self) -> bool:
        """Whether a response is there in part."""
        return self._in_body or bool(self._buffer)

    def feed(self, data: bytes) -> bool:
        """Whether the response is whole now. Raises BrokenResponse, after which the connection is of no use."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if not self._in_body:
            rest = self._read_head(data)
            if rest is None:
                return False
            data = rest
        return self._read_body(data)

    def feed_eof(self) -> bool:
        """The connection was closed: whether that ends the response well."""
        if self._in_body and self._left == -2:
            self._in_body = False
            return True
        return False

    # ------------------------------------------------------------------ head

    def _read_head(self, data: bytes) -> bytes | None:
        """What comes after the head; None while it is not whole."""
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD:
                    raise BrokenResponse(f"the head is longer than {MAX_HEAD} bytes")
                self._buffer = data
                return None
            found = _STATUS.match(data)
            if found is None:
                raise BrokenResponse(f"no HTTP/1.1: {data[:40]!r}")
            status = int(found[2])
            head, data = data[found.end() - 2 : end + 2].lower(), data[end + 4 :]
            if status >= 200 or status == 101:
                break
        self.status = status
        self.keep_alive = bool(_KEEP.search(head)) if found[1] == b"0" else not _CLOSE.search(head)
        self.is_lines = bool(_LINES.search(head))
        self.tail = b""
        self._left = self._body_length(head)
        self._in_body = True
        return data

    def _body_length(self, head: bytes) -> int:
        if self.status in (204, 304):
            return 0
        if _CHUNKED.search(head):
            self._chunk, self._chunk_ended, self._trailers = 0, False, False
            return -1
        length = _LENGTH.search(head)
        if length is not None:
            return int(length[1])
        self.keep_alive = False
        return -2

    # ------------------------------------------------------------------ body

    def _read_body(self, data: bytes) -> bool:
        if self._left == -1:
            return self._read_chunks(data)
        if self._left == -2:
            self._keep(data)
            return False
        if len(data) > self._left:
            raise BrokenResponse(f"{len(data) - self._left} bytes more than Content-Length says")
        self._keep(data)
        self._left -= len(data)
        self._in_body = self._left > 0
        return not self._in_body

    def _read_chunks(self, data: bytes) -> bool:
        at = 0
        while not self._trailers:
            if self._chunk:
                piece = data[at : at + self._chunk]
                self._keep(piece)
                self._chunk -= len(piece)
                at += len(piece)
                if self._chunk:
                    return False
                self._chunk_ended = True
            if self._chunk_ended:
                if len(data) - at < 2:
                    self._buffer = data[at:]
                    return False
                if data[at : at + 2] != b"\r\n":
                    raise BrokenResponse("a chunk does not end where it says")
                self._chunk_ended = False
                at += 2
            size = _SIZE.match(data, at)
            if size is None:
                if len(data) - at > MAX_SIZE_LINE or b"\n" in data[at:]:
                    raise BrokenResponse(f"no chunk: {data[at : at + 40]!r}")
                self._buffer = data[at:]
                return False
            self._chunk = int(size[1], 16)
            self._trailers = not self._chunk
            at = size.end()
        return self._read_trailers(data[at:])

    def _read_trailers(self, data: bytes) -> bool:
        if data.startswith(b"\r\n"):
            rest = data[2:]
        else:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD:
                    raise BrokenResponse(f"the trailers are longer than {MAX_HEAD} bytes")
                self._buffer = data
                return False
            rest = data[end + 4 :]
        if rest:
            raise BrokenResponse(f"{len(rest)} bytes after the last chunk")
        self._in_body = False
        return True

    def _keep(self, data: bytes) -> None:
        self.tail = data if not self.tail and len(data) <= KEPT else (self.tail + data)[-KEPT:]
