"""Logging: one line a record, as text or JSON, on standard error."""

import json
import logging
import sys
from datetime import UTC, datetime

from config.settings import Settings

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
        return json.dumps(entry)


def configure_logging(settings: Settings, *, quiet: bool = False) -> None:
    """Set up the root logger. `quiet` keeps a command's own output readable: warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if settings.log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    least = logging.WARNING if quiet else logging.getLevelNamesMapping()[settings.log_level]
    level = logging.DEBUG if settings.debug else least
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        # Libraries log requests with their bodies at DEBUG and INFO: prompts never go to logs.
        logging.getLogger(name).setLevel(logging.WARNING)
