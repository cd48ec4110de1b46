"""A scratch instance becomes the primary of a real application: the old one closed, the worker killed, a reboot."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text

from actions import registry
from actions.adapters.clock import SystemClock
from actions.adapters.embedded_postgres import EmbeddedPostgres, Start
from actions.adapters.kubernetes import KubernetesCluster
from actions.adapters.postmaster import Postmaster
from actions.adapters.service_check import ServiceProbe
from actions.backup.jobs import Engines
from actions.backup.physical import RecoveryTarget, ScratchFacts, ScratchState
from actions.backup.scratch_place import ScratchPlace
from actions.catalog.promote import Promote, PromoteParams
from actions.contract import Plan, Probe
from actions.errors import PermanentError, UserError
from actions.ports import Ports, no_progress
from actions.runner import Outcome, Runner
from actions.site import ClusterAccess, Database, DatabaseRef, Service, WorkloadKind, WorkloadRef
from actions.steps import old_primary
from actions.steps.promotion import PromoteScratch
from actions.steps.restore_scene import check_step
from actions.steps.scratch import StartScratch
from bot.demo import dataset, proof
from bot.demo.choices import Damage, Size
from bot.demo.cluster import ClusterStandIn
from bot.demo.damage import do_damage
from bot.demo.dataset import APPLICATION, DATABASE
from bot.demo.manifests import manifests
from bot.demo.plan import API, CLOSE_DAY, CONFIG_MAP, NAMESPACE, WORKER
from bot.demo.ports import free_ports
from bot.demo.world import answers
from bot.services.cards import PlanCard, PlanState
from bot.services.own_runs import OwnRuns
from storage.session import Database as Memory
from tests.contract.kit import MemoryJournal
from tests.fakes.dump_tests import NoDumpTests
from tests.fakes.executor import MemoryExecutor
from tests.fakes.s3 import MemoryObjects
from tests.fakes.slack import FakeSlack
from tests.fakes.world import a_world
from tests.fixtures.office import OfficeForTests, shipped_plan
from tests.fixtures.physical import Past
from tests.fixtures.slack_side import DANIEL, Posted, SlackSide, accounts
from tests.fixtures.waiting import eventually
from tests.physical_world import BUCKET, SERVER, PhysicalWorld

pytestmark = pytest.mark.integration

PLAN_ID = "k7m2n3p4q5"
PASSWORD = "a password of the tests"
LEASE = timedelta(seconds=15)  # of workers that share their loop with everything else


@dataclass
class Live:
    """An application that works on a server that is backed up and was harmed; `before` is the end of the WAL then."""

    world: PhysicalWorld
    ports: Ports
    cluster: ClusterStandIn
    url: str
    whole: proof.Proof
    marks: proof.Marks
    before: str

    async def restored(self) -> None:
        """The scratch instance `s1` from before the harm."""
        await self.world.restore(RecoveryTarget(lsn=self.before))
        await self.world.scratch.start("s1")

    def old(self, *, application: bool = False) -> str:
        server = self.world.server
        return server.dsn(DATABASE, role=APPLICATION, password=PASSWORD) if application else server.dsn(DATABASE)

    async def orders(self, server: str) -> int:
        [row] = await self.ports.postgres.query(DatabaseRef(server, DATABASE), "SELECT count(*) AS n FROM orders")
        return int(row["n"])

    async def works(self, server: str) -> None:
        """The application places orders on this server."""
        placed = await self.orders(server)

        async def placing() -> bool:
            return await self.orders(server) > placed

        await eventually(placing)


@pytest.fixture
async def live(run_directory: Path) -> AsyncIterator[Live]:
    directory = Path(tempfile.mkdtemp(dir=run_directory, prefix="live-"))
    await asyncio.to_thread(directory.chmod, 0o755)
    settings = {
        "summarize_wal": "on",
        "shared_buffers": "32MB",
        "wal_keep_size": "1GB",
        "work_mem": "5MB",
        "archive_mode": "on",
        "archive_command": "true",
    }
    server = EmbeddedPostgres(directory / "pg", durable=False, settings=settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        await server.start()
        cluster = await stack.enter_async_context(ClusterStandIn(directory / "cluster"))
        await dataset.make_roles(server.dsn(), password=PASSWORD)
        await dataset.fill(server.dsn(), server.dsn(DATABASE), size=Size.TINY)
        world = PhysicalWorld(server, MemoryObjects(BUCKET, clock=SystemClock()), directory / "world")
        [port] = free_ports(1)
        url = f"http://127.0.0.1:{port}/healthz"
        cluster.apply(*manifests(database_host=f"127.0.0.1:{server.port}", password=PASSWORD, port=port))
        await answers(url)
        await world.take("base")
        whole = await proof.marks(server.dsn(DATABASE))
        rows = await proof.prove(server.dsn(DATABASE), whole)
        [(before,)] = world.sql("SELECT pg_current_wal_insert_lsn()::text")
        await do_damage(server.dsn(DATABASE), Damage.DELETE_ROWS)
        await world.archive()
        yield Live(world, ports_of(world, cluster, url), cluster, url, rows, whole, str(before))
        for facts in await world.scratch.instances():
            await world.scratch.stop(facts.id)


def ports_of(world: PhysicalWorld, cluster: ClusterStandIn, url: str) -> Ports:
    world.values["APPLICATION"] = world.server.dsn(DATABASE, role=APPLICATION, password=PASSWORD)
    workloads = ((WorkloadKind.DEPLOYMENT, API), (WorkloadKind.DEPLOYMENT, WORKER), (WorkloadKind.CRON_JOB, CLOSE_DAY))
    site = world.site.model_copy(
        update={
            "databases": {
                DATABASE: Database(name=DATABASE, server=SERVER, owner=dataset.OWNER, service="superprismora")
            },
            "services": {
                "superprismora": Service(
                    name="superprismora",
                    workloads=tuple(WorkloadRef("main", NAMESPACE, kind, name) for kind, name in workloads),
                    health_url=url,
                    database_dsn="env:APPLICATION",
                    config_map=CONFIG_MAP,
                )
            },
            "clusters": {"main": ClusterAccess(name="main", kubeconfig=f"file:{cluster.kubeconfig}")},
        }
    )
    fakes = a_world()
    parts = {part.name: getattr(fakes, part.name) for part in fields(Ports)}
    logical, tables = world.logical(site, world.directory)
    real = {
        "site": site,
        "postgres": world.postgres,
        "objects": world.objects,
        "backups": logical,
        "physical": world.engine,
        "scratch": world.scratch,
        "tables": tables,
        "executor": MemoryExecutor(Engines(logical, world.engine, world.prover, NoDumpTests(), tables, fakes.files)),
        "cluster": KubernetesCluster(site, world.secrets),
        "service": ServiceProbe(world.secrets),
        "secrets": world.secrets,
        "clock": world.clock,
    }
    return Ports(**{**parts, **real})


async def planned(live: Live, *, old_primary_is_dead: bool = False) -> Plan:
    """Looked through first, as at the end of every restore."""
    facts = await live.world.scratch.find("s1")
    if facts is not None and not facts.checks and facts.state is ScratchState.PAUSED:
        await check_step(live.ports.site.databases[DATABASE], DATABASE, scratch="s1", table="").apply(
            live.ports, no_progress
        )
    params = PromoteParams(scratch="s1", old_primary_is_dead=old_primary_is_dead)
    return await Promote().plan(params, live.ports, PLAN_ID)


class DiesOncePromoted:
    """A scratch port whose process is not there any more when the promotion it began has ended."""

    def __init__(self, port: object) -> None:
        self._port = port
        self.died = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def promote(self, scratch: str, *, above: int = 0) -> ScratchFacts:
        await self._port.promote(scratch, above=above)  # type: ignore[attr-defined]
        self.died.set()
        await asyncio.Event().wait()
        raise AssertionError


class DeadError(Exception):
    """What a statement of a process meets that is not there any more."""


@dataclass
class Desk:
    """The bot in front of this world; its workers are started and killed by the test."""

    live: Live
    office: OfficeForTests
    side: SlackSide

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.office.worker(lease=LEASE).run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until_killed(self, dying: DiesOncePromoted) -> None:
        """A worker from now until it has promoted: then nothing more of it reaches the bot's database."""
        office, real = self.office, self.office.ports
        memory, self.office.at_work = office.at_work, Memory(office.memory.url)
        office.ports = replace(real, scratch=dying)
        worker = asyncio.create_task(office.worker(lease=LEASE).run())
        await dying.died.wait()

        def dead(*_: Any) -> None:
            raise DeadError

        event.listen(office.at_work.engine.sync_engine, "before_cursor_execute", dead)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        await office.at_work.dispose()
        office.at_work, office.ports = memory, real
        async with self.office.memory.session() as session:
            await session.execute(text("UPDATE run SET lease_until = clock_timestamp() WHERE state = 'running'"))

    async def ended(self, posted: Posted) -> PlanCard:
        states = (PlanState.SUCCEEDED, PlanState.FAILED, PlanState.ASKING)
        return await self.side.until(posted, *states, within=240, every=0.2)

    async def promoting(self, scratch: str) -> Posted:
        """Asked for by one person; another has to sign."""
        posted = await self.side.asked(f'promote {scratch} --reason "users are gone" --target {DATABASE}')
        assert posted.card.state is PlanState.PENDING, posted.card
        return posted

    async def configured(self) -> str:
        return (await self.live.ports.cluster.config("main", NAMESPACE, CONFIG_MAP))["DATABASE_HOST"]


@pytest.fixture
async def desk(live: Live, memory: Memory) -> AsyncIterator[Desk]:
    office = OfficeForTests(memory, shipped_plan(), catalogue=registry)
    runs = OwnRuns(office.at_work, office.policy, registry.kinds(), office.clock, office.drills(office.at_work))
    office.ports = replace(live.ports, runs=runs)
    try:
        async with FakeSlack(paced=False) as slack:
            accounts(slack)
            side = SlackSide(office, slack)
            async with side.open(workers=0):
                yield Desk(live, office, side)
    finally:
        await office.close()


@pytest.mark.timeout(300)
async def test_the_application_goes_on_at_the_new_primary_and_the_old_one_is_closed_for_good(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_primary, "WATCH", timedelta(seconds=2))
    live, side, server = desk.live, desk.side, desk.live.world.server
    before = await desk.configured()
    async with desk.working():
        point = await side.asked(f"{DATABASE} --lsn {live.before}")
        restored = await desk.ended(point)
        assert restored.state is PlanState.SUCCEEDED, restored.message
        scratch = point.card.plan_id
        promoting = await desk.promoting(scratch)  # for the next worker
    home = await live.ports.postgres.server(SERVER)
    asked = json.dumps(promoting.message.blocks)
    assert f"`{SERVER}`, primary at {home.address} on timeline id 1, system id {home.system_id}" in asked
    assert f"`scratch-{scratch}`, which becomes the primary as of " in asked
    await side.sign(promoting, user=DANIEL)

    await desk.until_killed(DiesOncePromoted(live.ports.scratch))
    # Between the promotion and the rollout: nobody writes anywhere.
    assert await desk.configured() == before
    assert (await live.ports.postgres.fencing(SERVER)).holds
    async with desk.working():
        ended = await desk.ended(promoting)
    assert ended.state is PlanState.SUCCEEDED, ended.message

    said = "on timeline id 2, branched off timeline id 1"
    assert await side.value("SELECT count(*) FROM timeline_entry WHERE text LIKE :said", said=f"%{said}%") == 1
    await side.slack.until(lambda: said in json.dumps(promoting.message.blocks))
    facts = await live.ports.scratch.find(scratch)
    assert facts is not None
    host, _, port = facts.address.rpartition(":")
    new = f"postgresql://{APPLICATION}:{PASSWORD.replace(' ', '%20')}@{host}:{port}/{DATABASE}"
    with psycopg.connect(new) as connection:
        shown = (
            "SELECT current_setting('work_mem'), current_setting('archive_mode'), current_setting('max_wal_senders')"
        )
        assert connection.execute(shown).fetchone() == ("5MB", "off", "10")
    assert await proof.prove(new, live.marks) == live.whole
    await answers(live.url)
    await live.works(facts.name)
    there = f"`superprismora` has _ session% at {facts.address}. None is left in `{SERVER}/{DATABASE}`."
    assert await side.value("SELECT count(*) FROM timeline_entry WHERE text LIKE :said", said=f"%{there}%") == 1
    # The old one is down and keeps the harm. Whoever starts it to look at it finds it closed to the application.
    assert server.postmaster() is None
    down = f"is down: nothing listens there. Its data is kept in `{server.data}`"
    assert await side.value("SELECT count(*) FROM timeline_entry WHERE text LIKE :said", said=f"%{down}%") == 1
    await server.stop()
    assert await server.start() is Start.NEW
    with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
        psycopg.connect(live.old(application=True))
    assert (await live.ports.postgres.fencing(SERVER)).holds
    # The machine is started again: it is found at the same address.
    Postmaster(live.world.scratch_directory / scratch / "data").kill()
    step = StartScratch(scratch=scratch)
    assert await step.probe(live.ports) is Probe.TODO
    again = await live.ports.scratch.start(scratch)
    await step.verify(live.ports)
    assert (again.address, again.state) == (facts.address, ScratchState.PROMOTED)
    await answers(live.url)
    kept = (live.world.scratch_directory / scratch / "data" / "postgresql.conf").read_text()
    assert "recovery_target" not in kept


async def test_a_primary_that_cannot_be_closed_is_told_and_one_that_is_gone_needs_the_word_of_a_person(
    live: Live,
) -> None:
    settings = live.world.server.data / "postgresql.conf"
    kept = settings.read_text()
    settings.write_text(f"{kept}\nallow_alter_system = off\n")
    live.world.sql("SELECT pg_reload_conf()")
    with pytest.raises(PermanentError, match="ALTER SYSTEM"):
        await live.ports.postgres.fence(SERVER)
    fence = await live.ports.postgres.fencing(SERVER)
    assert (fence.read_only, DATABASE in fence.open) == (False, True)
    settings.write_text(kept)

    await live.restored()
    await live.world.server.kill()
    [stop] = (await planned(live)).stopped
    assert "does not answer, so nothing closes it" in stop.detail

    plan = await planned(live, old_primary_is_dead=True)
    assert plan.stopped == ()
    assert any("is said to be dead" in finding.detail for finding in plan.findings)
    await live.world.server.start()
    stale = await Runner(plan, live.ports, MemoryJournal()).run()
    assert stale.outcome is Outcome.STALE
    assert "answers again" in stale.message

    await live.world.server.kill()
    result = await Runner(plan, live.ports, MemoryJournal()).run()

    assert result.outcome is Outcome.SUCCEEDED, result.message
    await answers(live.url)


KILLED = """
import asyncio, sys
from pathlib import Path
from actions.adapters.clock import SystemClock
from actions.adapters.scratch import ScratchInstances
from actions.site import Server, Site
site = Site(servers={"main": Server(name="main", admin_dsn="env:DSN")})
asyncio.run(ScratchInstances(site, Path(sys.argv[1]), SystemClock()).promote("s1"))
"""


async def test_a_promotion_that_was_killed_midway_is_brought_to_its_end(past: Past, server_directory: Path) -> None:
    world = past.anew(server_directory)
    await world.restore(RecoveryTarget(time=past.commits[4].after))
    await world.scratch.start("s1")
    fakes = a_world()
    parts = {part.name: getattr(fakes, part.name) for part in fields(Ports)}
    ports = Ports(**{**parts, "site": world.site, "postgres": world.postgres, "scratch": world.scratch})
    place = ScratchPlace(world.scratch_directory, "s1")
    step = PromoteScratch(scratch="s1", server=SERVER, timeline_id=1)
    command = (sys.executable, "-c", KILLED, str(world.scratch_directory))
    worker = await asyncio.create_subprocess_exec(*command)

    async def begun() -> bool:
        return place.promoted or worker.returncode is not None

    await eventually(begun)
    worker.kill()
    await worker.wait()
    Postmaster(place.data).kill()

    facts = await world.scratch.find("s1")
    assert facts is not None
    assert (facts.state, facts.address) == (ScratchState.PROMOTED, "")
    assert await step.probe(ports) is Probe.TODO
    await step.apply(ports, lambda _: None)
    await step.verify(ports)

    assert await step.probe(ports) is Probe.DONE
    assert "on timeline id 2" in await step.outcome(ports)
    rows = await world.postgres.query(DatabaseRef("scratch-s1", "postgres"), "SELECT row FROM ledger ORDER BY 1")
    assert [row["row"] for row in rows] == [1, 2, 3, 4]
    await world.scratch.stop("s1")


async def test_an_address_that_cannot_be_served_leaves_the_instance_as_it_was(
    past: Past, server_directory: Path
) -> None:
    world = past.anew(server_directory)
    await world.restore(RecoveryTarget(latest=True))
    before = await world.scratch.start("s1")
    hba = ScratchPlace(world.scratch_directory, "s1").data / "pg_hba.conf.production"
    rules = hba.read_text()
    hba.write_text("nonsense\n")
    port = int(before.address.rpartition(":")[2])

    with pytest.raises(UserError, match="It stands as before"):
        await world.scratch.open("s1", host="127.0.0.1", port=port)

    facts = await world.scratch.find("s1")
    assert facts is not None
    assert (facts.state, facts.opened) == (ScratchState.PAUSED, False)
    hba.write_text(rules)
    opened = await world.scratch.open("s1", host="127.0.0.1", port=port)
    assert (opened.opened, opened.address) == (True, f"127.0.0.1:{port}")
    assert (await world.postgres.server("scratch-s1")).in_recovery
    await world.scratch.shut("s1")
    await world.scratch.discard("s1", mark=before.mark)
