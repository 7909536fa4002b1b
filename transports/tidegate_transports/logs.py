"""What is logged: one line per failed request, as text or as JSON; never what a request held, and never a key."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Literal, TextIO

import msgspec

__all__ = ["JSONFormatter", "TextFormatter", "configure", "failed"]

log = logging.getLogger("tidegate.http")

_FIELDS = "tidegate"


def failed(level: int, message: str, /, *values: object, exc_info: bool = False, **facts: object) -> None:
    """Log one failed request; `facts` become fields of a JSON line (those that are empty are left out)."""
    if log.isEnabledFor(level):
        told = {name: value for name, value in facts.items() if value not in ("", None)}
        log.log(level, message, *values, exc_info=exc_info, extra={_FIELDS: told})


class JSONFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, logger, message, then what is known of the request.

    Example:
        >>> record = logging.LogRecord("tidegate.http", logging.ERROR, "", 0, "embed failed", None, None)
        >>> record.created = 0.25
        >>> JSONFormatter().format(record)
        '{"time":"1970-01-01T00:00:00.250Z","level":"error","logger":"tidegate.http","message":"embed failed"}'
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        line: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(_printable(line)).decode()


class TextFormatter(logging.Formatter):
    """A record for people: `2026-01-31T08:00:00.250Z ERROR tidegate.http: embed failed…`, then a traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the lines of a traceback."""
        text = f"{_timestamp(record.created)} {record.levelname} {record.name}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure(
    format: Literal["text", "json"] = "text", level: int | str = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send tidegate's log to `stream`, standard error by default: for a command line, not for a library.

    Calling it again replaces what it did before. Raises ValueError for a format or level that is unknown.
    """
    if format not in ("text", "json"):
        raise ValueError(f"format={format!r}: write text or json")
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    handler.set_name("tidegate")
    logger = logging.getLogger("tidegate")
    logger.setLevel(level.upper() if isinstance(level, str) else level)
    for old in [one for one in logger.handlers if one.get_name() == "tidegate"]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.propagate = False


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


def _printable(line: dict[str, Any]) -> dict[str, Any]:
    """The same fields, each as something that JSON in UTF-8 can hold."""
    return {
        name: value if isinstance(value, (int, float)) else str(value).encode("utf-8", "replace").decode()
        for name, value in line.items()
    }
