"""No secret leaves the processes that hold it. Row J10 of docs/reference/attacks.md.

A whole story on real servers: a dump, an incident, a refused and a signed restore, a command that fails, a token that
somebody types. Then every place that people or programs can read is searched for every secret there is.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, urlsplit

import psycopg
import pytest
from psycopg import sql

from bot.demo import story
from bot.demo.choices import Size
from bot.demo.dataset import DATABASE
from bot.demo.local_slack_control import texts
from bot.demo.people import OLIVIA
from bot.demo.running import ENVIRONMENT
from bot.demo.world import World, world

pytestmark = [pytest.mark.attack, pytest.mark.e2e, pytest.mark.timeout(400), pytest.mark.xdist_group("demo")]

TYPED = "xoxb-000000000000-typedByAPerson"
WRONG_KEY = "canary0secret0key0that0is0wrong"


TITLES = {"postgres: checkpointer", " idle", "bot.cli"}
"""Part of what must have been seen: titles of PostgreSQL, of its sessions, and our own processes. PostgreSQL writes its
titles over its command line, where `ps` reads them."""


class Watch:
    """The command lines and titles of all processes, ten times a second, searched for secrets."""

    def __init__(self) -> None:
        self.secrets: Mapping[str, str] = {}
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
            for path in [*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/comm")]:
                try:
                    line = path.read_bytes().decode(errors="replace")
                except OSError:
                    continue
                self.titles |= {title for title in TITLES if title in line}
                self.found |= {name for name, value in self.secrets.items() if value in line}


def secrets_of(demo: World) -> dict[str, str]:
    """Every secret of the demo by a name for people."""
    servers, found = demo.servers, {"the application's password": demo.servers.password}
    for name, server in (("production", servers.production), ("spare", servers.spare), ("memory", servers.memory)):
        found[f"{name} superuser"] = server.password()
    for path in (demo.running.directory / "secrets").rglob("*"):
        if not path.is_file() or path.name.endswith("access-key"):  # an access key is a name; its secret key is not
            continue
        content = path.read_text().strip()
        lines = [line for line in content.splitlines() if not line.startswith(("-----", "#"))]
        password = urlsplit(content).password if "\n" not in content else None
        if password:
            found[path.name] = unquote(password)
        else:
            found |= {f"{path.name}, line {number}": line for number, line in enumerate(lines) if len(line) > 15}
    tokens = servers.slack.tokens
    found |= {"bot token": tokens.bot, "app token": tokens.app, "signing secret": tokens.signing_secret}
    found |= {"a token somebody typed": TYPED, "the wrong key of S3": WRONG_KEY}
    public = [name for name, value in found.items() if "pub" in name or len(value) < 8]
    return {name: value for name, value in found.items() if name not in public}


def readable_files(directory: Path) -> Iterator[Path]:
    """What the bot and its servers write for people: logs, jobs, checkpoints, what was sent to Slack as a file."""
    own = {"secrets", "data", "superuser.password", "pgpass", "accounts.json", "identity.json", "workspace.json"}
    own |= {ENVIRONMENT, "demo.json", "kubeconfig"}  # what servers and people log in with; 0600 or in a closed folder
    for path in directory.rglob("*"):
        if path.is_file() and not own & set(path.relative_to(directory).parts):
            yield path


def rows(dsn: str) -> Iterator[tuple[str, str]]:
    """Every row of every table of a database, as text."""
    with psycopg.connect(dsn) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename), tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        for _, table in tables:
            for (row,) in connection.execute(sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(table))):
                yield table, row


def forms(value: str) -> set[str]:
    return {value, quote(value, safe=""), json.dumps(value)[1:-1]}


@asynccontextmanager
async def told_everything(demo: World) -> AsyncIterator[None]:
    """The servers log every statement, as an administrator may have set them to."""
    for server in (demo.servers.production, demo.servers.spare, demo.servers.memory):
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET log_statement = 'all'")
            connection.execute("SELECT pg_reload_conf()")
    yield


async def failing_command(demo: World) -> None:
    """A dump with a key that S3 refuses; the key comes back afterwards."""
    path = demo.running.directory / "secrets" / "s3-secret-key"
    good = path.read_text()
    path.write_text(WRONG_KEY)
    try:
        words = ("backup", "run", DATABASE)
        await asyncio.gather(
            demo.bot.ask(*words, person=OLIVIA.person, timeout=timedelta(minutes=2)), return_exceptions=True
        )
    finally:
        path.write_text(good)


async def test_j10_no_secret_is_found_anywhere(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(run_directory))  # where the demo makes its folder
    said: list[str] = []
    leaks: list[str] = []
    with Watch() as watch:
        async with world(Size("tiny"), tell=said.append) as demo, told_everything(demo):
            watch.secrets = secrets = secrets_of(demo)
            assert len(secrets) >= 10
            result = await story.story(demo.running, demo.bot)
            assert result["restored"], result
            await failing_command(demo)
            async with demo.servers.slack.control() as slack:
                note = f"note it says {TYPED} here"
                await slack.command(OLIVIA.slack_id, demo.running.channel, f"/dr-incident {note}")
                await slack.command(OLIVIA.slack_id, demo.running.channel, "/dr-incident timeline html")
                await asyncio.sleep(3)
                bodies = texts(await slack.messages(demo.running.channel)) + texts(await slack.log())
            # What the person typed is in Slack as it was typed, which is why it must be rotated.
            places: list[tuple[str, str]] = [("Slack", body) for body in bodies if not body.endswith(note)]
            places += [("the terminal", line) for line in said]
            places += [(f"table {table}", row) for table, row in rows(demo.running.memory_dsn)]
            directory = demo.running.directory
            places += [
                (str(path.relative_to(directory)), path.read_bytes().decode(errors="replace"))
                for path in readable_files(directory)
            ]
            begun = time.monotonic()
            for place, content in places:
                leaks += [
                    f"{name} in {place}"
                    for name, value in secrets.items()
                    if any(form in content for form in forms(value))
                ]
            assert time.monotonic() - begun < 120
    assert watch.looks > 50
    assert watch.titles == TITLES, "titles were looked at as well"
    assert watch.found == set(), "secrets on command lines or in titles"
    assert sorted(set(leaks)) == [], "\n".join(sorted(set(leaks)))
    assert any(place.endswith("bot.log") for place, _ in places)
    assert any(place.endswith("postgres.log") for place, _ in places)
    assert sum(place.startswith("table ") for place, _ in places) > 20
    statements = [content for place, content in places if place.endswith("postgres.log")]
    assert any("CREATE ROLE" in content for content in statements), "the servers have logged what they were told"
    for content in statements:
        assert re.search(r"PASSWORD\s+'(?!SCRAM-SHA-256\$)", content) is None, "a password in clear in a server's log"
