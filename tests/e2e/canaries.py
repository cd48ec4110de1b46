"""Secrets of a demo, planted and looked for: in the titles of processes, and in every place that people read."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg import sql

from bot.demo.dataset import DATABASE
from bot.demo.local_slack_control import LocalSlackControl, texts
from bot.demo.people import OLIVIA
from bot.demo.running import ENVIRONMENT, RunningDemo
from tests.e2e.demo_process import DRBOT, ROOT

TYPED = "xoxb-000000000000-typedByAPerson"
WRONG_KEY = "canary0secret0key0that0is0wrong"
SERVERS = ("production", "spare", "memory")
TITLES = {"postgres: checkpointer", " idle", "bot.cli"}
"""Part of what must have been seen: titles of PostgreSQL, of its sessions, and our own processes. PostgreSQL writes its
titles over its command line, where `ps` reads them."""

Places = Sequence[tuple[str, str]]
"""Name of a place, what stands there."""


class Watch:
    """The command lines and titles of all processes, ten times a second, searched for secrets."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = {name: value.encode() for name, value in secrets.items()}
        self.found: set[str] = set()
        self.looks = 0
        self.titles: set[str] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.1):
            self.looks += 1
            lines = b"\n".join(_lines())
            self.titles |= {title for title in TITLES if title.encode() in lines}
            self.found |= {name for name, value in self._secrets.items() if value in lines}


def _lines() -> Iterator[bytes]:
    # Not by Path, which would be a quarter of a processor here.
    for process in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
        for name in ("cmdline", "comm"):
            try:
                with open(f"/proc/{process}/{name}", "rb", buffering=0) as stream:  # noqa: PTH123
                    yield stream.readall() or b""
            except OSError:
                continue


def environment_of(demo: RunningDemo) -> dict[str, str]:
    """What the bot was started with."""
    words = shlex.split((demo.directory / ENVIRONMENT).read_text())
    return dict(word.split("=", 1) for word in words if word != "export")


def secrets_of(demo: RunningDemo) -> dict[str, str]:
    """Every secret of the demo by a name for people."""
    found: dict[str, str] = {}
    for name in SERVERS:
        found[f"{name} superuser"] = (demo.directory / name / "superuser.password").read_text().strip()
    for path in (demo.directory / "secrets").rglob("*"):
        if not path.is_file() or path.name.endswith("access-key"):  # an access key is a name; its secret key is not
            continue
        content = path.read_text().strip()
        lines = [line for line in content.splitlines() if not line.startswith(("-----", "#"))]
        password = urlsplit(content).password if "\n" not in content else None
        if password:
            found[path.name] = unquote(password)
        else:
            found |= {f"{path.name}, line {number}": line for number, line in enumerate(lines) if len(line) > 15}
    environment = environment_of(demo)
    found |= {
        "the application's password": found["application-dsn"],
        "bot token": environment["SLACK_BOT_TOKEN"],
        "app token": environment["SLACK_APP_TOKEN"],
        "signing secret": environment["SLACK_SIGNING_SECRET"],
        "a token somebody typed": TYPED,
        "the wrong key of S3": WRONG_KEY,
    }
    public = [name for name, value in found.items() if "pub" in name or len(value) < 8]
    return {name: value for name, value in found.items() if name not in public}


def log_every_statement(demo: RunningDemo) -> None:
    """The servers log every statement, as an administrator may have set them to."""
    spare = (demo.directory / "secrets" / "spare-dsn").read_text()
    for dsn in (demo.server_dsn, spare, demo.memory_dsn):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET log_statement = 'all'")
            connection.execute("SELECT pg_reload_conf()")


async def places(demo: RunningDemo) -> Places:
    """Let a command fail and somebody type a token; then every place that people or programs can read."""
    await asyncio.to_thread(_failing_command, demo)
    async with LocalSlackControl(demo.slack_url) as slack:
        note = f"note it says {TYPED} here"
        await slack.command(OLIVIA.slack_id, demo.channel, f"/dr-incident {note}")
        await slack.command(OLIVIA.slack_id, demo.channel, "/dr-incident timeline html")
        await asyncio.sleep(3)
        bodies = texts(await slack.messages(demo.channel)) + texts(await slack.log())
    # What the person typed is in Slack as it was typed, which is why it must be rotated.
    found = [("Slack", body) for body in bodies if not body.endswith(note)]
    found += [(f"table {table}", row) for table, row in _rows(demo.memory_dsn)]
    found += [
        (str(path.relative_to(demo.directory)), path.read_bytes().decode(errors="replace"))
        for path in _readable_files(demo.directory)
    ]
    return found


def _failing_command(demo: RunningDemo) -> None:
    """A dump with a key that S3 refuses; the key comes back afterwards."""
    path = demo.directory / "secrets" / "s3-secret-key"
    good = path.read_text()
    path.write_text(WRONG_KEY)
    environment = {**os.environ, **environment_of(demo), "DRBOT_PERSON": OLIVIA.person}
    command = [*DRBOT, "backup", "run", DATABASE]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=240, check=False)
    finally:
        path.write_text(good)
    assert done.returncode != 0, done.stdout.decode()


def _readable_files(directory: Path) -> Iterator[Path]:
    """What the bot and its servers write for people: logs, jobs, checkpoints, what was sent to Slack as a file."""
    own = {"secrets", "data", "superuser.password", "pgpass", "accounts.json", "identity.json", "workspace.json"}
    own |= {ENVIRONMENT, "demo.json", "kubeconfig"}  # what servers and people log in with; 0600 or in a closed folder
    for path in directory.rglob("*"):
        if path.is_file() and not own & set(path.relative_to(directory).parts):
            yield path


def _rows(dsn: str) -> Iterator[tuple[str, str]]:
    """Every row of every table of a database, as text."""
    with psycopg.connect(dsn) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename), tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        for _, table in tables:
            for (row,) in connection.execute(sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(table))):
                yield table, row
