"""Keeps tracebacks out of the log where a client's request was at fault."""

from __future__ import annotations

import logging

# What vLLM answers with 400: its own errors by name, since its versions keep them in other places.
_BUILT_IN = (ValueError, TypeError, OverflowError)
_NAMES = frozenset({"VLLMClientError", "VLLMValidationError", "TemplateError"})
_ROUTES = "vllm.entrypoints."


def is_client_error(error: BaseException | None) -> bool:
    """True for an error that vLLM's routes answer with 400."""
    named = _NAMES & {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, _BUILT_IN) or bool(named)


class NoClientTracebacks(logging.Filter):
    """Leaves such a record its sentence. On a handler, since loggers do not ask their parents'."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.name.startswith(_ROUTES) and is_client_error(error):
            record.exc_info = record.exc_text = None
        return True


def leave_out_client_tracebacks(logger: logging.Logger) -> None:
    """Of all that ``logger`` and those below it write."""
    for handler in logger.handlers:
        handler.addFilter(NoClientTracebacks())
