"""A prover apart, on real servers: two processes with keys of their own each. Workers leave restore tests to it, it
takes nothing else, a second one goes on where the first was killed, and both sides are seen not to reach each other's
keys."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from actions.adapters.embedded_postgres import EmbeddedPostgres
from actions.adapters.programs import Program, ProgramError, run
from actions.adapters.secrets import SecretReferences
from actions.backup.physical import Proof
from actions.backup.signing import Signed
from actions.contract import PLAN_SCHEMA, Finding, Verdict
from bot.bootstrap import office
from bot.demo.dataset import DATABASE
from bot.demo.plan import BUCKET
from bot.demo.ports import free_ports
from bot.plan_file import DrPlan, dump, load
from bot.prover import ALIVE, BESIDE_PROVING, NO_PROVER, PROVING, ROLE, prover_findings
from bot.roles import Role
from storage import processes, runs
from storage.roles import DatabaseRole
from storage.session import Database
from tests.fixtures.logins import make_logins
from tests.fixtures.postgres import QUICK_LOGINS, log_in_quickly
from tests.fixtures.waiting import eventually, until
from tests.fixtures.worker_process import WorkerProcess
from tests.fixtures.world import CHANNEL, LEASE_S, FaultWorld

pytestmark = [
    pytest.mark.integration,
    pytest.mark.xdist_group("prover"),
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

OURS = ("prover-identity.txt", "proof-key.pem", "s3-prover-access-key", "s3-prover-secret-key")
"""The files of secrets that are the prover's."""


class ProverWorld(FaultWorld):
    """Production with an archiver, a worker and, when a test starts one, a prover. Every secret is a variable that only
    the processes which need it have."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        settings = {"shared_buffers": "64MB", "fsync": "off", "wal_level": "replica", "max_wal_senders": "10"}
        self.production = EmbeddedPostgres(directory / "production", settings={**settings, **QUICK_LOGINS})
        self.provers: list[WorkerProcess] = []

    async def _start(self) -> None:
        for server in (self.production, self.memory, self.objects):
            self._stack.push_async_callback(server.stop)
        self._stack.push_async_callback(self.nursery.stop)
        await self.nursery.start()
        async with asyncio.TaskGroup() as tasks:
            for server in (self.production, self.memory, self.objects):
                tasks.create_task(server.start())
            tasks.create_task(self._stack.enter_async_context(self.cluster))
        for server in (self.production, self.memory):
            await asyncio.to_thread(log_in_quickly, server)
        self.password = "a password of the tests"
        self._stack.push_async_callback(self._reader.close)
        await asyncio.to_thread(self.objects.client().create_bucket, Bucket=BUCKET)
        await self._fill()
        [self.port] = free_ports(1)
        self.plan = self._write_plan()
        owner = Database(self.memory.dsn())
        self._stack.push_async_callback(owner.dispose)
        await owner.migrate()
        self.logins = await make_logins(self.memory)
        database = Database(self.logins[DatabaseRole.SLACK], role=DatabaseRole.SLACK)
        self._stack.push_async_callback(database.dispose)
        self.office = office(database, self.plan)
        archiver = await asyncio.to_thread(self._archiver)
        self._stack.push_async_callback(asyncio.to_thread, archiver.kill)
        self.workers.append(await self.process(Role.WORKER, self.secrets_of(prover=False)))
        await self.workers[0].started(within=60)
        made = await self.ended(await self.planned("backup.base", server="primary"))
        assert made.state == "succeeded", made

    def _archiver(self) -> Program:
        settings = {"DRBOT_PLAN_FILE": str(self.plan_file), "DRBOT_DATA_DIRECTORY": str(self.var)}
        return Program.start(
            [sys.executable, "-m", "bot.cli", "wal", DATABASE],
            env={**settings, "DRBOT_WAL_OPEN_EVERY_S": "0.5"},
            secrets=self.secrets_of(prover=False),
            log=self.directory / "wal.log",
        )

    def _write_plan(self) -> DrPlan:
        plan = super()._write_plan()
        place = self.directory / "secrets"
        key = Ed25519PrivateKey.generate()
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (place / "proof-key.pem").write_bytes(key.private_bytes(*pem))
        (place / "s3-prover-access-key").write_text(self.objects.prover_access_key)
        (place / "s3-prover-secret-key").write_text(self.objects.prover_secret_key)
        self.proof_signer = base64.b64encode(key.public_key().public_bytes_raw()).decode()
        document = plan.model_dump(mode="json")
        document["backups"] |= {
            "prover": "apart",
            "proof_signing_key": f"file:{place}/proof-key.pem",
            "proof_signers": [self.proof_signer],
        }
        document["buckets"][0] |= {
            "prover_access_key": f"file:{place}/s3-prover-access-key",
            "prover_secret_key": f"file:{place}/s3-prover-secret-key",
        }
        shutil.copy(self.cluster.kubeconfig, place / "kubeconfig")
        text = dump(DrPlan.model_validate(document)).replace(str(self.cluster.kubeconfig), f"{place}/kubeconfig")
        text = re.sub(rf"file:{place}/([A-Za-z0-9.-]+)", lambda found: f"env:{variable(found[1])}", text)
        self.plan_file.write_text(text)
        return load(self.plan_file)

    def secrets_of(self, *, prover: bool) -> Mapping[str, str]:
        """What the environment of a process has."""
        files = [path for path in (self.directory / "secrets").iterdir() if (path.name in OURS) is prover]
        return {variable(path.name): path.read_text() for path in files}

    async def prover(self, *, more: Mapping[str, str] | None = None) -> WorkerProcess:
        """One more prover, on a disk that provers share and no worker sees."""
        secrets = {**self.secrets_of(prover=True), **(more or {})}
        process = await self.process(Role.PROVER, secrets, DRBOT_DATA_DIRECTORY=str(self.directory / "prover"))
        self.provers.append(process)
        await process.started(within=60)
        return process

    async def no_provers(self) -> None:
        """All of them ended, and what they have said forgotten."""
        for process in self.provers:
            await process.kill()
        self.provers.clear()
        await self.remembered("DELETE FROM process WHERE roles = 'prover' RETURNING id")

    async def restarted(self) -> None:
        """A worker again, whatever a test has done to the one before."""
        if not self.workers[0].alive:
            self.workers[0] = await self.process(Role.WORKER, self.secrets_of(prover=False))
            await self.workers[0].started(within=60)

    async def claims(self, role: DatabaseRole, run: str) -> int | None:
        """What the login of a role gets for a run that waits."""
        database = Database(self.logins[role], role=role)
        try:
            async with database.session() as session:
                return await runs.claim(session, run, owner="a-1-test", lease=timedelta(seconds=1), locks=())
        finally:
            await database.dispose()

    async def said(self) -> list[Finding]:
        """What a doctor beside a worker says of provers."""
        async with self.office.database.session() as session:
            rows = await processes.alive(session, within=ALIVE)
        return await prover_findings(self.plan, rows, SecretReferences(self.secrets_of(prover=False)))


def variable(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(run_directory: Path) -> AsyncIterator[ProverWorld]:
    directory = Path(tempfile.mkdtemp(prefix="prover-", dir=run_directory))
    await asyncio.to_thread(directory.chmod, 0o755)  # PostgreSQL runs as another account and must get in
    try:
        async with ProverWorld(directory) as made:
            yield made
            await made.no_provers()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _alone(world: ProverWorld) -> AsyncIterator[None]:
    yield
    await world.no_provers()
    await world.restarted()


async def proofs(world: ProverWorld, of: str = "physical") -> list[Proof]:
    client = world.objects.client()
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"backups/{of}/proofs/").get("Contents", [])
    bodies = [client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read() for item in listed]
    return [Signed[Proof].parse(body, (world.proof_signer,), what="a proof") for body in bodies]


async def test_a_restore_test_waits_for_the_prover_which_ends_it_with_its_own_keys(world: ProverWorld) -> None:
    card = await world.planned("backup.prove", server="primary")
    query = "SELECT state, message, owner FROM run WHERE id = %s"

    async def told() -> bool:
        return (await world.remembered(query, card.plan_id))[0] == ("awaiting", NO_PROVER, "")

    await eventually(told)
    prover = await world.prover()
    end = await world.ended(card)
    assert end.state == "succeeded", await world.story(card)
    await until(lambda: f'"run": "{card.plan_id}"' in prover.said())  # which it says once it has written it down
    assert card.plan_id not in world.workers[0].said()
    [proof] = [each for each in await proofs(world) if each.id == card.plan_id]
    assert proof.problem is None
    assert proof.checks[f"{DATABASE}: users"] != "0"
    assert not list((world.directory / "prover" / "scratch").glob("*/data"))
    assert not (world.var / "jobs" / f"{card.plan_id}-1").exists()


async def test_a_dump_is_loaded_and_proven_by_the_prover_alone(world: ProverWorld) -> None:
    backup = await world.dumped(DATABASE)
    await world.prover()
    card = await world.planned("backup.prove", server=DATABASE, dump=backup)
    end = await world.ended(card)
    assert end.state == "succeeded", await world.story(card)
    assert card.plan_id not in world.workers[0].said()
    [proof] = [each for each in await proofs(world, of="dumps") if each.id == card.plan_id]  # signed by its own key
    assert (proof.problem, proof.backup, proof.database) == (None, backup, DATABASE)
    assert proof.checks[f"{DATABASE}: users"] != "0"
    assert not list((world.directory / "prover" / "scratch").glob("*/data"))


async def test_neither_side_reaches_the_keys_of_the_other(world: ProverWorld) -> None:
    prover = await world.prover()

    async def examined() -> bool:
        return any("on" in item.check and item.check.endswith("buckets") for item in await world.said())

    await eventually(examined)
    found = await world.said()
    assert {item.verdict for item in found} == {Verdict.OK}, found
    assert any("none of" in item.detail for item in found)
    await prover.kill()
    # And that this would be seen.
    [told] = [
        item
        for item in await prover_findings(world.plan, (), SecretReferences(world.secrets_of(prover=True)))
        if item.check == "keys of the prover"
    ]
    assert told.verdict is Verdict.STOP
    assert "`backups.prover_identity`" in told.detail


async def test_a_prover_that_could_do_more_is_told(world: ProverWorld) -> None:
    whole = {"S3_PROVER_ACCESS_KEY": world.objects.access_key, "S3_PROVER_SECRET_KEY": world.objects.secret_key}
    identity = {"AGE_IDENTITY_TXT": (world.directory / "secrets" / "age-identity.txt").read_text()}
    await world.prover(more={**whole, **identity})

    async def stopped() -> bool:
        return sum(item.verdict is Verdict.STOP for item in await world.said()) >= 4

    await eventually(stopped)
    stops = " ".join(item.detail for item in await world.said() if item.verdict is Verdict.STOP)
    assert "can read `backups.identity`, which a restore test has no business with" in stops
    assert "can store and delete `backups/physical/base/drbot-prover-trial`" in stops
    assert "can store and delete `backups/dumps/drbot-prover-trial`" in stops
    left = world.objects.client().list_objects_v2(Bucket=BUCKET, Prefix="backups/physical/base/drbot-prover-trial")
    assert not left.get("Contents")


async def test_a_prover_takes_no_other_run_and_its_login_cannot(world: ProverWorld) -> None:
    await world.prover()
    await world.dumped(DATABASE)
    card = await world.planned("restore.dump", typed=DATABASE, database=DATABASE)
    await world.workers[0].kill()
    await world.approve(card)
    assert await world.claims(DatabaseRole.PROVER, card.plan_id) is None
    await asyncio.sleep(6)  # longer than it takes a worker to look again
    assert await world.remembered("SELECT state, epoch FROM run WHERE id = %s", card.plan_id) == [("awaiting", 0)]
    # The same call by a worker's login takes it, so it was the prover that could not.
    assert await world.claims(DatabaseRole.WORKER, card.plan_id) == 1
    await world._end_runs("awaiting", "running")


async def test_a_prover_that_is_killed_is_followed_by_a_prover_never_by_a_worker(world: ProverWorld) -> None:
    first = await world.prover()
    card = await world.planned("backup.prove", server="primary")
    await world.journalled(card, 0, "applying")
    first.send(signal.SIGSTOP)  # whatever it was about to do, it does not any more
    await first.kill()
    [(owner, epoch)] = await world.remembered("SELECT owner, epoch FROM run WHERE id = %s", card.plan_id)
    await asyncio.sleep(3 * LEASE_S)
    assert await world.remembered("SELECT state, owner, epoch FROM run WHERE id = %s", card.plan_id) == [
        ("running", owner, epoch)
    ]
    await world.no_provers()  # and nobody believes any more that it lives
    told = "SELECT count(*) FROM outbox WHERE channel = %s AND payload ->> 'text' LIKE %s"

    async def left() -> bool:
        return await world.remembered(told, CHANNEL, f"Run {card.plan_id} % stands still: %") == [(1,)]

    await eventually(left)
    await world.prover()
    end = await world.ended(card)
    assert end.state == "succeeded", await world.story(card)
    assert {item.epoch for item in await world.journal(card)} == {1, 2}
    assert card.plan_id not in world.workers[0].said()
    assert card.plan_id in {each.id for each in await proofs(world)}


async def test_a_prover_shares_no_process(world: ProverWorld) -> None:
    settings = {"DRBOT_PLAN_FILE": str(world.plan_file), "DRBOT_DATA_DIRECTORY": str(world.directory / "both")}
    words = ["-m", "bot.cli", "run", "--role", "worker", "--role", ROLE]
    with pytest.raises(ProgramError, match=r"shares no process with another role\. Start `drbot run --role prover`"):
        await run([sys.executable, *words], env=settings, timeout=timedelta(seconds=60))


async def test_a_retry_of_a_test_is_the_provers_too(world: ProverWorld) -> None:
    card = await world.planned("backup.prove", server="primary")
    async with world.office.database.session() as session:
        waiting = {item.id for item in await runs.awaiting(session, plan_schema=PLAN_SCHEMA, share=PROVING)}
        others = {item.id for item in await runs.awaiting(session, plan_schema=PLAN_SCHEMA, share=BESIDE_PROVING)}
    assert card.plan_id in waiting - others
    await world._end_runs("awaiting")
    retry = await world.planned("run.retry", run=card.plan_id)
    async with world.office.database.session() as session:
        waiting = {item.id for item in await runs.awaiting(session, plan_schema=PLAN_SCHEMA, share=PROVING)}
    assert retry.plan_id in waiting
    await world.prover()
    assert (await world.ended(retry)).state == "succeeded", await world.story(retry)
