"""`drbot plan activate`, `sign` and `run` as the commands they are: a new plan file comes into force by three keys, the
running worker goes over to it, and a file that was never signed does not start anything.

Each command line that signs is a process of its own once; the others are read by the same parser in this one, since
most of a process's time is the import of the bot.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text
from typer.testing import CliRunner

from actions.adapters.programs import ProgramError, run
from actions.errors import UserError
from bot.cli import app
from bot.plan_file import DrPlan, dump
from bot.services.plan_versions import sha256_of
from storage.session import Database
from tests.fixtures.keyed import PERSONS, keyed_plan
from tests.fixtures.ssh_keys import MakeKey
from tests.fixtures.waiting import until
from tests.fixtures.worker_process import WorkerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(300)]

ADDRESSES = {
    "DR_PRIMARY_HOST": "127.0.0.1",
    "DR_SECONDARY_HOST": "127.0.0.1",
    "DR_HEALTH_URL": "http://127.0.0.1:1/",
    "DR_BACKUP_REGION": "here",
    "DR_FILES_REGION": "here",
    "DR_FILES_COPY_REGION": "there",
    "DR_WITNESS_REGION": "here",
    "DR_FILES_ENDPOINT": "http://127.0.0.1:1",
    "DR_RECIPIENT_RESTORE": "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
    "DR_RECIPIENT_PROVER": "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
    "DR_RECIPIENT_CUSTODIAN": "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
    "DR_MANIFEST_SIGNER": "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=",
}
"""Where nothing is: no step of this story looks there."""


class Site:
    """An installation with its database, its plan file and the keys of its people."""

    def __init__(self, memory: Database, folder: Path, keys: dict[str, Path], plan: DrPlan) -> None:
        self.memory = memory
        self.folder = folder
        self.keys = keys
        self.plan = plan
        self.processes: list[WorkerProcess] = []

    def file(self, name: str, plan: DrPlan) -> Path:
        path = self.folder / name
        path.write_text(dump(plan))
        return path

    def _settings(self, file: Path) -> dict[str, str]:
        return {
            **ADDRESSES,
            "DRBOT_PLAN_FILE": str(file),
            "DRBOT_DATA_DIRECTORY": str(self.folder / "var"),
            "DRBOT_LEASE_S": "5",
        }

    async def worker(self, file: Path) -> WorkerProcess:
        number = len(self.processes)
        secrets = {"DATABASE_URL": self.memory.url}
        process = WorkerProcess(self._settings(file), secrets, self.folder / f"worker-{number}.log")
        self.processes.append(process)
        await process.start()
        return process

    def _person(self, person: str, file: Path) -> dict[str, str]:
        return self._settings(file) | {"DRBOT_PERSON": person, "DRBOT_KEY": str(self.keys[person])}

    async def process(self, person: str, *words: str, file: Path) -> str:
        """What `drbot WORDS` prints as a process of its own. Raises ProgramError when it is a refusal."""
        command = [sys.executable, "-m", "bot.cli", *words]
        secrets = {"DATABASE_URL": self.memory.url}
        return (await run(command, env=self._person(person, file), secrets=secrets, timeout=timedelta(seconds=60))).text

    async def drbot(self, person: str, *words: str, file: Path) -> str:
        """The same in this process. Raises what `drbot` prints as one sentence when it is a refusal."""
        environment = self._person(person, file) | {"DATABASE_URL": self.memory.url}
        # In a thread: the command has an event loop of its own.
        done = await asyncio.to_thread(CliRunner().invoke, app, words, env=environment)
        if isinstance(done.exception, Exception):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    async def versions(self) -> list[tuple[str, str]]:
        async with self.memory.session() as session:
            rows = await session.execute(text("SELECT sha256, plan_id FROM plan_version ORDER BY seq"))
            return [(row.sha256, row.plan_id) for row in rows]


@pytest_asyncio.fixture
async def site(memory: Database, tmp_path: Path, make_key: MakeKey) -> AsyncIterator[Site]:
    keys = {person: make_key(person) for person in PERSONS}
    # Without witnesses: nothing of this story is about them.
    plan = keyed_plan(keys)
    alone = plan.approval.model_copy(update={"break_glass": None})  # it would need a pager
    plan = plan.model_copy(update={"record": None, "pager": None, "approval": alone})
    made = Site(memory, tmp_path, keys, plan)
    yield made
    for process in made.processes:
        await process.kill()


async def test_a_plan_file_comes_into_force_by_three_keys(site: Site) -> None:
    first = site.file("first.yml", site.plan)
    worker = await site.worker(first)
    await worker.started()
    assert await site.versions() == [(sha256_of(first.read_text()), "")]

    # Erik leaves the roster.
    smaller = site.plan.model_copy(update={"roster": tuple(item for item in site.plan.roster if item.id != "erik")})
    second = site.file("second.yml", smaller)
    target = f"plan-{sha256_of(second.read_text())[:8]}"
    asked = await site.process(
        "olivia", "plan", "activate", str(second), "--reason", "Erik has left", "--target", target, file=first
    )
    assert "roster.erik.id: erik -> nothing" in asked
    assert "2 more person(s) besides the requester" in asked
    found = re.search(r"Plan (\w{10}) ", asked)
    assert found is not None
    plan_id = found[1]

    words = ("sign", plan_id, "--reason", "he has", "--target", target)
    with pytest.raises(UserError, match=r"must approve|already"):
        await site.drbot("olivia", *words, file=first)
    assert "still missing" in await site.drbot("daniel", *words, file=first)
    assert len(await site.versions()) == 1
    assert "starts now" in await site.process("sam", *words, file=first)
    await until(lambda: "plan_reloaded" in worker.said(), within=40)
    await until(lambda: worker.said().count("worker_started") == 2, within=40)
    assert worker.alive
    assert await site.versions() == [(sha256_of(first.read_text()), ""), (sha256_of(second.read_text()), plan_id)]
    shown = await site.drbot("olivia", "plan", "show", plan_id, file=first)
    assert "succeeded" in shown
    assert (await site.drbot("olivia", "plan", "export", file=first)).strip() == second.read_text().strip()
    assert "BEGIN SSH SIGNATURE" in await site.drbot("olivia", "proofs", plan_id, file=first)

    # The roster in force decides, also at the terminal of somebody whose file is older.
    with pytest.raises(UserError, match="not on the roster"):
        await site.drbot("erik", "deny", plan_id, "--reason", "x", file=first)

    # An older file starts under the plan in force; a file that nobody signed starts nothing.
    other = await site.worker(first)
    await other.started()
    assert "plan_file_is_older" in other.said()
    edited = site.file("edited.yml", site.plan.model_copy(update={"owner": "somebody else"}))
    refused = await site.worker(edited)
    await until(lambda: not refused.alive, within=40)
    assert "is not the plan in force" in refused.said()
    assert "drbot plan activate" in refused.said()
    assert len(await site.versions()) == 2


async def test_what_is_no_plan_is_refused_at_the_terminal(site: Site) -> None:
    first = site.file("first.yml", site.plan)
    broken = site.folder / "broken.yml"
    broken.write_text(first.read_text().replace("DESTRUCTIVE", "HARMLESS"))
    with pytest.raises(UserError, match=r"broken.yml:\d+:\d+: error"):
        await site.drbot("olivia", "plan", "activate", str(broken), "--reason", "x", "--target", "x", file=first)


async def test_slack_is_suspected_and_trusted_again_at_the_terminal(site: Site) -> None:
    file = site.file("first.yml", site.plan)
    await site.drbot("olivia", "incident", "open", "Orders are gone", file=file)
    await site.drbot("sam", "incident", "suspect-slack", "that was not me", file=file)
    clear = ("incident", "clear-suspect-slack", "sessions revoked")
    assert "second person" in await site.drbot("sam", *clear, file=file)
    with pytest.raises(UserError, match="none of daniel's keys"):
        await site.drbot("daniel", *clear, "--sign", str(site.keys["sam"]), file=file)
    assert "Signatures from Slack count from now on" in await site.process("daniel", *clear, file=file)
    with pytest.raises(UserError, match="no incident"):
        await site.drbot("erik", *clear, file=file)
    with pytest.raises(ProgramError, match="no terminal"):
        await site.process("erik", "break-glass", "restore", "superprismora", file=file)
