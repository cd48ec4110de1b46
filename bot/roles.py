"""The roles of a process of `drbot run`; beside the settings, so that the command line starts without them."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a process of `drbot run` does; one machine runs the first three together."""

    SLACK = "slack"
    WORKER = "worker"
    CLOCK = "clock"
    PROVER = "prover"


TOGETHER = (Role.SLACK, Role.WORKER, Role.CLOCK)
"""What one process may be at once; the prover is apart, or it is none."""
