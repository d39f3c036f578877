"""What the server says, a JSON object a line."""

import json
import logging.config
from datetime import UTC, datetime
from typing import Any

from msrn.errors import MSRNError

LOGGER = logging.getLogger("msrn.server")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON: time, level, message, and what `extra={"fields": ...}` has."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage().strip(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logs(level: str | int) -> None:
    """Write what this process logs, and what it warns of, to standard error."""
    level = level.upper() if isinstance(level, str) else level
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter}},
            "handlers": {
                "lines": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}
            },
            "root": {"handlers": ["lines"], "level": "WARNING"},
            "loggers": {"msrn.server": {"level": level}, "uvicorn": {"level": level}},
        }
    )
    logging.captureWarnings(True)


def log_failure(message: str, error: Exception, **fields: Any) -> None:
    """Log what went wrong, with a traceback unless msrn raised it on purpose."""
    unknown = None if isinstance(error, MSRNError) else error
    LOGGER.error(message, exc_info=unknown, extra={"fields": {"error": str(error), **fields}})
