"""What a running demo leaves in its folder, so that a second terminal finds it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import psutil
from pydantic import ValidationError

from actions.errors import UserError
from actions.site import Frozen
from bot.demo.keys import private_file
from bot.demo.sweeper import PREFIX

STATE = "demo.json"
ENVIRONMENT = "environment"


class RunningDemo(Frozen):
    """Everything a second process needs. The file holds passwords: 0600, and gone with the demo."""

    directory: Path
    pid: int
    process_started: float  # seconds since 1970, tells a reused pid apart
    ready_at: datetime
    slack_url: str
    channel: str
    health_url: str
    production_dsn: str  # administrator's, to the database `superprismora`
    server_dsn: str  # administrator's, to `postgres` of the same server
    memory_dsn: str
    marks: Mapping[str, int]  # highest key of each table when the first dump began

    @property
    def alive(self) -> bool:
        try:
            return psutil.Process(self.pid).create_time() == self.process_started
        except psutil.NoSuchProcess:
            return False


def write(demo: RunningDemo, environment: Mapping[str, str]) -> None:
    """Write the state, and a file of `export` lines for `drbot` in another terminal."""
    private_file(demo.directory / STATE, demo.model_dump_json(indent=2) + "\n")
    lines = [f"export {name}={_quoted(value)}\n" for name, value in environment.items()]
    private_file(demo.directory / ENVIRONMENT, "".join(lines))


def find(directory: Path | None = None) -> RunningDemo:
    """The demo in the folder, or the newest that runs. Raises UserError when there is none."""
    if directory is not None:
        demo = _read(directory / STATE)
        if demo is None or not demo.alive:
            raise UserError(f"No demo runs in `{directory}`. Start one with `make demo`.")
        return demo
    folders = Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{STATE}")
    running = [demo for demo in map(_read, folders) if demo is not None and demo.alive]
    if not running:
        raise UserError(
            "No demo is ready on this machine. Start one with `make demo` and wait for its address, "
            "or name its folder with `--demo`."
        )
    return max(running, key=lambda demo: demo.ready_at)


def own_start() -> float:
    """When this process started, as `RunningDemo.process_started` has it."""
    return float(psutil.Process(os.getpid()).create_time())


def _read(path: Path) -> RunningDemo | None:
    try:
        return RunningDemo.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None  # another account's, or it is going at this moment


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"
