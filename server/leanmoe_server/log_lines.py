"""The server's log as JSON: our lines, vLLM's and uvicorn's alike, an object a line."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError
from leanmoe.wire import STATUS_PATH
from leanmoe_server.request_mark import current_mark

FORMATS = ("text", "json")
# Read by vLLM in each of its processes, also while it is imported.
CONFIG_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
_LEVEL_VARIABLE, _STREAM_VARIABLE = "VLLM_LOGGING_LEVEL", "VLLM_LOGGING_STREAM"
_OK = 200


class JsonLines(logging.Formatter):
    """A record as one line: time, level, logger, process, message; request id and traceback."""

    def __init__(self) -> None:
        super().__init__()
        # What libraries warn of goes through logging as well, in every process with this log.
        logging.captureWarnings(True)

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "process": getattr(record, "vllm_process_name", record.processName),
            "pid": record.process,
            "message": record.getMessage(),
        }
        mark = current_mark()
        if mark is not None:
            line["request_id"] = mark.id
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _config(level: str, stream: str) -> dict[str, Any]:
    """For ``logging.config.dictConfig``, which vLLM and uvicorn call with it."""
    own = {"handlers": ["lines"], "level": level, "propagate": False}
    quiet = {"handlers": ["lines"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": f"{__name__}.{JsonLines.__qualname__}"}},
        "handlers": {
            "lines": {"class": "logging.StreamHandler", "formatter": "lines", "stream": stream}
        },
        "loggers": {
            **dict.fromkeys(("vllm", "leanmoe", "leanmoe_server", "leanmoe_runtime"), own),
            **dict.fromkeys(("uvicorn", "uvicorn.error", "uvicorn.access"), quiet),
        },
        "root": {"handlers": ["lines"], "level": "WARNING"},
    }


@contextmanager
def logging_as(name: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Have vLLM, wherever it is imported meanwhile, log in format ``name``.

    ``InputError`` where ``environment`` names a configuration of another log already.
    """
    if name == "text":
        yield
        return
    if CONFIG_VARIABLE in environment:
        raise InputError(
            f"--log-format json and {CONFIG_VARIABLE} each say how to log; leave out one of the two"
        )
    level = environment.get(_LEVEL_VARIABLE, "INFO")
    stream = environment.get(_STREAM_VARIABLE, "ext://sys.stdout")
    with tempfile.TemporaryDirectory(prefix="leanmoe-log-") as folder:
        file = Path(folder) / "logging.json"
        file.write_text(json.dumps(_config(level, stream)), encoding="utf-8")
        os.environ[CONFIG_VARIABLE] = str(file)
        try:
            yield
        finally:
            os.environ.pop(CONFIG_VARIABLE, None)


class _Polls(logging.Filter):
    """Leaves out the access lines of pages that ask how the server is every two seconds."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not isinstance(record.args, tuple) or len(record.args) < 5:
            return True
        path, status = record.args[2], record.args[4]
        return status != _OK or str(path).partition("?")[0] != STATUS_PATH


def leave_out_polls() -> None:
    """For the access log of this process."""
    logging.getLogger("uvicorn.access").addFilter(_Polls())
