"""What keeps a program of ours from harming the machine it runs on, by means of util-linux.

Its own session and process group, no inherited descriptors and a small environment are `Program`'s part. Programs and
not `preexec_fn`: Python code between fork and exec can hang in a process with threads.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of each process of a job. `memory` are bytes of writable memory of its own; None: as much as there is."""

    memory: int | None = 4 << 30
    open_files: int = 4096


def contained(command: Sequence[str | Path], limits: Limits) -> list[str | Path]:
    """The argv of `command` under the limits: no core dump (it would hold secrets), no new privileges.

    The process keeps its number: each of these programs becomes the next. Where one is missing, its part is too.
    """
    prefix: list[str | Path] = []
    if sys.platform == "linux" and shutil.which("prlimit"):
        prefix += ["prlimit", "--core=0", f"--nofile={limits.open_files}"]
        prefix += [f"--data={limits.memory}"] if limits.memory is not None else []
        prefix.append("--")
    if sys.platform == "linux" and shutil.which("setpriv"):
        prefix += ["setpriv", "--no-new-privs", "--"]
    return [*prefix, *command]
