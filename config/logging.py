"""Logging: one line a record, as text or JSON, on standard error."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from promptstack.config.control_characters import escaped
from promptstack.config.settings import Settings

_QUIET = (
    "httpx2",
    "httpcore2",
    "openai",
    "kombu",
    "amqp",
    "alembic",
    "aiohttp.access",
    "celery.redirected",
)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        elif frames := getattr(record, "frames", None):
            entry["traceback"] = frames
        return json.dumps(entry)


class TextFormatter(logging.Formatter):
    """One line a record, with the traceback indented below.

    Quoted text can neither start a line that looks like a record nor command a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        frames = getattr(record, "frames", None)
        text = super().format(record)
        return f"{text}\n{_indented(frames)}" if frames else text

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Return its line."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the library's name
        """Return the traceback below it."""
        return _indented(super().formatException(ei))


def _indented(traceback: str) -> str:
    return "\n".join(f"    {escaped(line)}" for line in traceback.rstrip("\n").split("\n"))


def log_unexpected(logger: logging.Logger, what: str, error: Exception) -> None:
    """Log an unexpected error by its type and traceback, without its message.

    The message may quote a prompt.
    """
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s: %s", what, type(error).__name__, extra={"frames": frames})


class StandardError(logging.StreamHandler[TextIO]):
    """Looks up standard error at each write: a stream that was set earlier may be closed."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(settings: Settings, *, quiet: bool = False) -> None:
    """Set up the root logger. `quiet` keeps a command's own output readable: warnings only."""
    handler = StandardError(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if settings.log_format == "json"
        else TextFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    least = logging.WARNING if quiet else logging.getLevelNamesMapping()[settings.log_level]
    level = logging.DEBUG if settings.debug else least
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        # Libraries log requests with their bodies at DEBUG and INFO: prompts never go to logs.
        logging.getLogger(name).setLevel(logging.WARNING)
