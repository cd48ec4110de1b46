"""The composition root: settings and plan file become adapters, services, processes; the only file that knows all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from pydantic import SecretStr

from actions import registry
from actions.adapters.clock import SystemClock
from actions.adapters.embedded_postgres import EmbeddedPostgres, Listen
from actions.contract import Finding
from actions.errors import TemporaryError, UserError
from actions.ports import Ports
from bot import prover
from bot.counter import Counter, plan_text, unheard
from bot.doctor import Doctor
from bot.plan_file import DrPlan
from bot.roles import Role
from bot.sealing import sealer_of, watch_of
from bot.services import plan_versions
from bot.services.approvals import Approvals, Policy
from bot.services.backup_watch import BackupWatch
from bot.services.deliveries import Deliveries
from bot.services.desk import Desk
from bot.services.drills import Drills
from bot.services.incidents import Incidents
from bot.services.leftovers import Leftovers
from bot.services.paging import Paging
from bot.services.plans import Plans
from bot.services.record.adoption import Adoption
from bot.services.record.export import write_log
from bot.services.record.watch import Watch
from bot.services.reviews import Reviews
from bot.services.run_control import RunControl
from bot.services.scratch_sweeps import ScratchSweeps
from bot.services.signing import Signing
from bot.services.standbys import Standbys
from bot.services.statements import Proof, Statement
from bot.services.suspicion import Suspicion
from bot.services.wake import Wake
from bot.settings import Settings, SlackMode
from bot.world import ports, secret_references
from storage import plans as stored_plans
from storage import processes
from storage.roles import DatabaseRole
from storage.runs import Share
from storage.session import Database

if TYPE_CHECKING:  # Slack, the worker and the clock are imported by the processes that run them alone: they are slow
    from bot.slack.runtime import SlackRuntime
    from bot.worker import Worker

log = structlog.get_logger()

BEAT = timedelta(seconds=10)

DATABASE_ROLES = {
    Role.SLACK: DatabaseRole.SLACK,
    Role.WORKER: DatabaseRole.WORKER,
    Role.CLOCK: DatabaseRole.CLOCK,
    Role.PROVER: DatabaseRole.PROVER,
}
"""Even in one process, each of its parts has the rights of its own role alone."""


@dataclass(frozen=True, kw_only=True)
class Office:
    """The use cases on one database."""

    database: Database
    plan: DrPlan
    policy: Policy
    approvals: Approvals
    plans: Plans
    incidents: Incidents
    drills: Drills
    desk: Desk
    deliveries: Deliveries
    wake: Wake


@asynccontextmanager
async def bot_databases(settings: Settings, *roles: DatabaseRole) -> AsyncIterator[Mapping[DatabaseRole, Database]]:
    """The bot's own PostgreSQL at the newest schema, once for each role. Roles with a URL of their own use that, and
    look whether the schema is the newest; the others use the owner's, which migrates at first.

    Raises UserError when an administrator must act first, TemporaryError when the database does not answer.
    """
    async with AsyncExitStack() as stack:
        urls = {role: url.get_secret_value() for role in roles if (url := _own_url(settings, role)) is not None}
        owner = None
        if len(urls) < len(roles):
            owner = await stack.enter_async_context(_owned(settings))
        databases = {
            role: Database(urls[role], role=role, mask=settings.mask)
            if owner is None or role in urls
            else owner.acting_as(role)
            for role in roles
        }
        for role, database in databases.items():
            stack.push_async_callback(database.dispose)
            await database.ready()
            if role in urls:
                await database.require_newest()
        yield databases


@asynccontextmanager
async def bot_database(settings: Settings, role: DatabaseRole = DatabaseRole.CLI) -> AsyncIterator[Database]:
    """The same for one role, by default that of the command line."""
    async with bot_databases(settings, role) as databases:
        yield databases[role]


async def migrate(settings: Settings) -> None:
    """Bring schema, roles and rights to this version, as the owner."""
    async with _owned(settings):
        pass


@asynccontextmanager
async def _owned(settings: Settings) -> AsyncIterator[Database]:
    """As the owner, migrated. The bundled server is started when no URL is set, and stopped by the process that started
    it."""
    async with AsyncExitStack() as stack:
        if settings.database_url is not None:
            url = settings.database_url.get_secret_value()
        else:
            server = EmbeddedPostgres(settings.data_directory.resolve() / "memory", listen=Listen.SOCKET)
            await stack.enter_async_context(server)
            url = server.dsn()
        database = Database(url, mask=settings.mask)
        try:
            await database.ready()
            await database.migrate()
        finally:
            await database.dispose()
        yield database


def _own_url(settings: Settings, role: DatabaseRole) -> SecretStr | None:
    return {
        DatabaseRole.SLACK: settings.slack_database_url,
        DatabaseRole.WORKER: settings.worker_database_url,
        DatabaseRole.CLOCK: settings.clock_database_url,
        DatabaseRole.CLI: settings.cli_database_url,
        DatabaseRole.PROVER: settings.prover_database_url,
    }.get(role)


def office(database: Database, plan: DrPlan, wake: Wake | None = None) -> Office:
    """The services over one database, with the rights it gives. One `wake` serves all offices of a process."""
    clock = SystemClock()
    wake = wake or Wake()
    policy = Policy(plan)
    approvals = Approvals(
        database, policy, registry.kinds(), clock, action=registry.action, recoveries=registry.recoveries()
    )
    plans = Plans(database, approvals, registry.kinds(), clock)
    incidents = Incidents(database, plan, policy, clock)
    drills = Drills(database, plan, policy, clock)
    return Office(
        database=database,
        plan=plan,
        policy=policy,
        approvals=approvals,
        plans=plans,
        incidents=incidents,
        drills=drills,
        desk=Desk(database, approvals, plans, incidents, clock, drills=drills),
        deliveries=Deliveries(database, plans, incidents, wake),
        wake=wake,
    )


async def doctor(settings: Settings, *, quick: bool) -> list[Finding]:
    """Everything the bot needs, looked at from this process."""
    async with bot_database(settings) as database:
        plan = (await plan_versions.in_force(database, settings.plan_file)).plan
        world = await ports(settings, plan, database)
        watch = await watch_of(plan, database, secret_references(settings, plan), SystemClock())
        return await Doctor(database, plan, Policy(plan), world, record=watch).examine(quick=quick)


async def adopt(
    settings: Settings, person: str, reason: str, prove: Callable[[str, Statement], Awaitable[Proof]]
) -> str:
    """Sign that the bot's own database, restored from a backup, is gone on with; `prove` shows the two pasts and has
    the statement signed. Raises UserError when there is nothing to adopt, or the person may not."""
    async with bot_database(settings) as database:
        plan = (await plan_versions.in_force(database, settings.plan_file)).plan
        watch = await watch_of(plan, database, secret_references(settings, plan), SystemClock())
        if watch is None:
            raise UserError("The plan file names no witnesses, so there is nothing to compare with; add `record`.")
        adoption = Adoption(database, watch, Policy(plan), SystemClock())
        return await adoption.hand_in(person, await prove(*await adoption.statement(person, reason)))


async def export_log(settings: Settings, write: Callable[[str], object]) -> int:
    """The whole log as JSON Lines, one call a line; how many entries."""
    async with bot_database(settings) as database:
        return await write_log(database, write)


async def show_plan(settings: Settings, plan_id: str) -> str:
    """A stored plan as text. Raises UserError when there is none."""
    async with bot_database(settings) as database:
        services = office(database, (await plan_versions.in_force(database, settings.plan_file)).plan)
        async with database.session() as session:
            row = await stored_plans.get(session, plan_id) or await stored_plans.by_code(session, plan_id)
            if row is None:
                raise UserError(f"There is no plan `{plan_id}`; its message and `drbot status` name it.")
            return plan_text(await services.plans.card(session, row))


async def at_the_counter(
    settings: Settings, noun: str, words: list[str], person: str, aside: Callable[[str], None]
) -> tuple[str, bool]:
    """The twin of a slash command: its answer, and whether it is good news."""
    async with front(settings, person, aside=aside) as there:
        return await there.counter.ask(noun, words)


@dataclass(frozen=True, kw_only=True)
class Front:
    """What one person at the command line has before him."""

    counter: Counter
    signing: Signing
    suspicion: Suspicion
    plan: DrPlan


@asynccontextmanager
async def front(settings: Settings, person: str, *, aside: Callable[[str], None] = unheard) -> AsyncIterator[Front]:
    """The counter and the pen for one person. `aside` takes what is told while a run is under way."""
    async with bot_database(settings) as database:
        plan = (await plan_versions.in_force(database, settings.plan_file)).plan
        services = office(database, plan)
        yield Front(
            counter=Counter(
                database,
                services.desk,
                services.deliveries,
                person=person,
                channel=plan.channels.on_call,
                aside=aside,
            ),
            signing=Signing(database, services.approvals, services.plans, SystemClock(), person=person),
            suspicion=services.incidents.suspicion,
            plan=plan,
        )


async def plan_in_force(settings: Settings) -> str:
    """The text of the plan file that is in force."""
    async with bot_database(settings) as database:
        return (await plan_versions.in_force(database, settings.plan_file)).document


async def run(settings: Settings, roles: Collection[Role]) -> None:
    """Run the roles until SIGTERM or SIGINT. Raises UserError when something needed is missing."""
    if Role.PROVER in roles and len(set(roles)) > 1:
        raise UserError(
            "A prover has an account and keys of its own, so it shares no process with another role. Start "
            "`drbot run --role prover` by itself."
        )
    async with bot_databases(settings, *map(DATABASE_ROLES.__getitem__, roles)) as databases:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        # Only a worker may record the first version; the others take the file until one has.
        records = Role.WORKER in roles
        database = databases[DATABASE_ROLES[Role.WORKER]] if records else next(iter(databases.values()))
        while True:
            version = await plan_versions.begin(database, settings.plan_file, records=records, adopts=settings.demo)
            await _serve(_with_plan(settings, version), roles, databases, version, stop)
            if stop.is_set() or not await plan_versions.superseded(database, version):
                return
            log.info("plan_reloaded")


def _with_plan(settings: Settings, version: plan_versions.InForce) -> Settings:
    """The settings of a process that works under this version: its jobs read it from a file of its own."""
    if plan_versions.is_file(settings.plan_file, version):
        return settings
    file = settings.data_directory.resolve() / "plan-in-force.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(version.document)
    return settings.model_copy(update={"plan_file": file})


async def _serve(
    settings: Settings,
    roles: Collection[Role],
    databases: Mapping[DatabaseRole, Database],
    version: plan_versions.InForce,
    stop: asyncio.Event,
) -> None:
    """Run the roles under one version of the plan file, until `stop` or the next version."""
    plan = version.plan
    wake = Wake()
    offices = {role: office(databases[DATABASE_ROLES[role]], plan, wake) for role in roles}
    database = next(iter(databases.values()))
    tasks = [asyncio.create_task(database.listen(wake), name="listen")]
    tasks.append(asyncio.create_task(plan_versions.watch(database, version), name="plan"))
    slack: SlackRuntime | None = None
    if Role.SLACK in roles and settings.slack_mode is not SlackMode.OFF:
        slack = slack_runtime(settings, offices[Role.SLACK])
        serving = slack.run_beside_others() if len(roles) > 1 else slack.run()
        tasks.append(asyncio.create_task(serving, name="slack"))
    if Role.WORKER in roles:
        tasks += await _working(settings, plan, offices[Role.WORKER])
    examination = None
    if Role.PROVER in roles and prover.apart(plan):
        services = offices[Role.PROVER]
        world = await ports(settings, plan, services.database, prover=True)
        examination = prover.Examination(plan, world)
        # Without witnesses: an older copy of the database could have it repeat a test, and nothing else.
        worker = _worker(settings, services, world, None, share=prover.PROVING)
        tasks.append(asyncio.create_task(worker.run(), name="prover"))
        tasks.append(asyncio.create_task(examination.run(), name="examination"))
        tasks.append(asyncio.create_task(ScratchSweeps(services.database, world).run(), name="scratch"))
    elif Role.PROVER in roles:
        log.warning("prover_idle", reason="the plan file does not say `backups.prover: apart`")
    if Role.CLOCK in roles:
        from bot.clock import DrClock

        clock = DrClock(offices[Role.CLOCK].database, plan, SystemClock())
        tasks.append(asyncio.create_task(clock.run(), name="clock"))
        reviews = Reviews(offices[Role.CLOCK].database, offices[Role.CLOCK].approvals, SystemClock())
        tasks.append(asyncio.create_task(reviews.run(), name="reviews"))
        sealer = await sealer_of(
            plan, offices[Role.CLOCK].database, secret_references(settings, plan), SystemClock(), wake
        )
        if sealer is not None:
            tasks.append(asyncio.create_task(sealer.run(), name="sealer"))
    tasks.append(asyncio.create_task(_beat(database, roles, slack, examination), name="beat"))
    await _until(stop, tasks)


async def _working(settings: Settings, plan: DrPlan, services: Office) -> list[asyncio.Task[None]]:
    """The tasks of a worker."""
    world = await ports(settings, plan, services.database)
    watch = await watch_of(plan, services.database, secret_references(settings, plan), SystemClock())
    worker = _worker(settings, services, world, watch, share=prover.share_of_workers(plan))
    backups = BackupWatch(services.database, world, on_call=plan.channels.on_call)
    works: dict[str, Coroutine[None, None, None]] = {
        "worker": worker.run(),
        "pages": _paging(settings, plan, services.database).run(),
        "leftovers": Leftovers(services.database, world).run(),
        "scratch": ScratchSweeps(services.database, world).run(),
        "standbys": Standbys(services.database, world, on_call=plan.channels.on_call).run(),
        "backups": backups.run(),
    }
    if prover.apart(plan):
        lease = timedelta(seconds=settings.lease_s)
        nobody = prover.NobodyProves(services.database, SystemClock(), on_call=plan.channels.on_call, lease=lease)
        works["provers"] = nobody.run()
    return [asyncio.create_task(work, name=name) for name, work in works.items()]


def _worker(settings: Settings, services: Office, world: Ports, watch: Watch | None, *, share: Share) -> Worker:
    from bot.worker import Worker

    plan = services.plan
    return Worker(
        services.database,
        world,
        services.approvals,
        services.plans,
        services.incidents,
        Doctor(services.database, plan, services.policy, world, record=watch),
        services.wake,
        RunControl(services.approvals, SystemClock(), on_call=plan.channels.on_call, recoveries=registry.recoveries()),
        drills=services.drills,
        record=watch,
        share=share,
        answers_requests=share.others,
        lease=timedelta(seconds=settings.lease_s),
    )


def _paging(settings: Settings, plan: DrPlan, database: Database) -> Paging:
    from actions.adapters.pager import WebhookPager

    pager = None if plan.pager is None else WebhookPager(plan.pager, secret_references(settings, plan))
    return Paging(database, pager)


async def _beat(
    database: Database, roles: Collection[Role], slack: SlackRuntime | None, examination: prover.Examination | None
) -> None:
    """Say every few seconds that this process is alive, whether Slack takes its tokens, and what it does not allow; of
    a prover, what it could do that it must not."""
    own = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    notes: dict[str, object]
    names = ",".join(sorted(roles))
    while True:
        lost = {} if slack is None else {item.method: f"{item.error}; {item.without}" for item in slack.lost}
        notes = {"lost": lost, "trouble": "" if slack is None else slack.trouble}
        notes |= {} if examination is None else examination.notes()
        try:
            async with database.session() as session:
                await processes.beat(session, own, names, notes)
        except TemporaryError as error:
            log.warning("beat_not_written", error=str(error))
        await _next_beat(examination)


async def _next_beat(examination: prover.Examination | None) -> None:
    """Wait for the time of the next sign of life, or until the prover has looked at itself: nobody waits for that."""
    if examination is None:
        await asyncio.sleep(BEAT.total_seconds())
        return
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(examination.looked.wait(), BEAT.total_seconds())
    examination.looked.clear()


async def _until(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for the signal or for the first task that ends by itself, whose error is raised."""
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in [stopping, *tasks]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for task, result in zip(tasks, results, strict=True):
        if task in done and isinstance(result, BaseException):
            raise result


def slack_runtime(settings: Settings, services: Office) -> SlackRuntime:
    """The Slack side. Raises UserError for tokens that are missing."""
    from bot.slack.runtime import SlackRuntime

    bot_token = settings.slack_bot_token
    if bot_token is None:
        raise UserError("SLACK_BOT_TOKEN is not set; set it, or start with `--role worker --role clock`.")
    return SlackRuntime(
        bot_token=bot_token.get_secret_value(),
        app_token=settings.slack_app_token.get_secret_value() if settings.slack_app_token else None,
        signing_secret=settings.slack_signing_secret.get_secret_value() if settings.slack_signing_secret else None,
        api_url=settings.slack_api_url,
        socket_mode=settings.slack_mode is SlackMode.SOCKET,
        http_host=settings.http_host,
        http_port=settings.http_port,
        desk=services.desk,
        outbox=services.deliveries,
        team=services.plan.workspace,
        shared=services.plan.channels.shared,
        mask=settings.mask,
    )
