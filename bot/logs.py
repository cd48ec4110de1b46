"""The log of a process: one event a line on standard error, without secrets, whatever is logged and by whom.

Our own events and those of libraries pass the same processors. Control characters are written as escapes, so that no
text of a person can forge a line or speak to the terminal of whoever reads it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from bot.redaction import Mask
from bot.visible import visible, visible_lines

LONGEST = 2_000
"""Characters of one value. Nobody can fill the disk with one sentence."""

LONGEST_TRACE = 30_000

_TRACES = {"exception", "traceback"}


def configure(form: str, mask: Mask) -> None:
    """Set up structlog and the standard library's logging for this process. `form`: `json` or `text`."""
    render: Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    head: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]

    def masked_values(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        # Before the cut, which could leave half a secret standing.
        return {key: mask.tree(value) for key, value in event.items()}

    def masked_line(_: WrappedLogger, __: str, line: Any) -> str:
        return mask(str(line))  # what was no text before it was rendered

    tail: list[Processor] = [structlog.processors.format_exc_info, masked_values, bounded, render, masked_line]
    structlog.configure(
        processors=[*head, *tail],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*head, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)

    def crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # Python's own hook prints the error's text as it is.
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(visible_lines(mask(text)))

    sys.excepthook = crashed


def bounded(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Every text on one line and of bounded length; a traceback keeps its lines."""
    return {key: _bounded(key, value) for key, value in event.items()}


def _bounded(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    trace = key in _TRACES
    limit = LONGEST_TRACE if trace else LONGEST
    # The end of a traceback says what happened, the beginning of a sentence what it is about.
    cut = value if len(value) <= limit else f"… {value[-limit:]}" if trace else f"{value[:limit]} …"
    return visible_lines(cut) if trace else visible(cut)
