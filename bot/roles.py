"""The roles of a process of `drbot run`; beside the settings, so that the command line starts without them."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a process of `drbot run` does; one machine runs all three together."""

    SLACK = "slack"
    WORKER = "worker"
    CLOCK = "clock"
