"""The demo as a whole: everything the bot rescues, and the bot, in one folder that goes when the demo goes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from actions.adapters.programs import Program
from actions.errors import PermanentError, TemporaryError
from bot.demo import running
from bot.demo.child import BotProcess
from bot.demo.choices import Size
from bot.demo.dataset import APPLICATION, DATABASE
from bot.demo.keys import make_keys, private_file
from bot.demo.local_slack import INCIDENTS
from bot.demo.manifests import manifests
from bot.demo.own_cluster import OwnCluster
from bot.demo.pages import receiver
from bot.demo.people import OLIVIA
from bot.demo.plan import NAMESPACE, Addresses, Witnesses, demo_plan
from bot.demo.ports import free_ports
from bot.demo.running import RunningDemo
from bot.demo.servers import Phases, Say, Servers, start_servers
from bot.demo.sweeper import PREFIX
from bot.demo.welcome import ready_text
from bot.plan_file import dump

FIRST_DUMP_WITHIN = timedelta(minutes=5)
APPLICATION_WITHIN_S = 30.0
SWEPT_WITHIN = timedelta(seconds=40)


@dataclass(frozen=True, kw_only=True)
class World:
    """A demo that is ready: the first dump is taken and the application answers."""

    servers: Servers
    bot: BotProcess
    running: RunningDemo
    phases: Phases


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@asynccontextmanager
async def world(
    size: Size, *, own_cluster: Path | None = None, archiving: bool = True, tell: Say = say
) -> AsyncIterator[World]:
    """Start everything in a fresh folder, and end everything afterwards. `own_cluster` is the kubeconfig of the cluster
    that the bot is to act on instead of the stand-in. Without `archiving` nobody takes production's WAL away.

    Raises DrError, alone or in a group, when something does not start.
    """
    directory = _fresh_folder()
    phases = Phases(say=tell)
    tell(f"Starting the demo in {directory}, everything on 127.0.0.1")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_swept(directory))
        servers = await start_servers(stack, directory, size=size, phases=phases)
        [port] = free_ports(1)
        own, access = None, (servers.cluster.kubeconfig, NAMESPACE)
        if own_cluster is not None:
            own = await stack.enter_async_context(OwnCluster(own_cluster, servers.cluster, home=NAMESPACE))
            access = (own_cluster, own.namespace)
            tell(f"Your cluster has the namespace {own.namespace} now; the application's processes follow it.")
        pager = await stack.enter_async_context(receiver(directory))
        environment = await asyncio.to_thread(_write_files, directory, servers, port, access, pager)
        bot = BotProcess(environment, directory / "bot.log", tell)
        await stack.enter_async_context(bot)
        marks = await servers.filled
        if archiving:
            await stack.enter_async_context(_archiver(environment, directory / "wal.log", tell))
        workloads = manifests(database_host=_address(servers), password=servers.password, port=port)
        servers.cluster.apply(*workloads)
        if own is not None:
            await own.apply(workloads)
        health_url = f"http://127.0.0.1:{port}/healthz"
        await _ready(servers, bot, health_url, phases)
        demo = RunningDemo(
            directory=directory,
            pid=os.getpid(),
            process_started=running.own_start(),
            ready_at=datetime.now(UTC),
            slack_url=servers.slack.page_url,
            channel=INCIDENTS.id,
            health_url=health_url,
            production_dsn=servers.production.dsn(DATABASE),
            server_dsn=servers.production.dsn(),
            memory_dsn=servers.memory.dsn(),
            marks=marks,
        )
        running.write(demo, environment)
        yield World(servers=servers, bot=bot, running=demo, phases=phases)


def _fresh_folder() -> Path:
    directory = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    # PostgreSQL does not run as root and must reach its own folder; what is secret is 0600 or in a 0700 folder.
    directory.chmod(0o755)
    return directory


async def stay(size: Size, *, own_cluster: Path | None = None) -> int:
    """`drbot demo`: ready until Ctrl-C or SIGTERM. The exit code: 0 when it was ready."""
    ready = False

    async def work() -> None:
        nonlocal ready
        async with world(size, own_cluster=own_cluster) as found:
            ready = True
            say(ready_text(found.running, seconds=found.phases.total))
            await found.bot.failed()

    await until_signal(work())
    return 0 if ready else 130


async def until_signal(work: Coroutine[object, object, None]) -> bool:
    """Run to the end, or cleanly away at SIGINT, SIGTERM or SIGHUP; True when it came to its end by itself."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    asked = False

    def stop() -> None:
        nonlocal asked
        if not asked:  # a second Ctrl-C must not cut the clean-up short
            asked = True
            say("Ending the demo.")
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not asked:
            raise
    return not asked


@asynccontextmanager
async def _swept(directory: Path) -> AsyncIterator[None]:
    """A sweeper that follows, even when this process is killed; at the end wait until it has removed the folder."""
    command = [sys.executable, "-m", "bot.demo.sweeper", str(directory)]
    sweeper = await asyncio.to_thread(lambda: Program.start(command, stdin=True, outlive_owner=True))
    try:
        yield
    finally:
        if sweeper.stdin is not None:
            sweeper.stdin.close()
        await asyncio.to_thread(sweeper.wait, SWEPT_WITHIN)


def _archiver(environment: Mapping[str, str], log: Path, tell: Say) -> BotProcess:
    """It has neither the tokens of Slack nor the bot's memory."""
    own = {name: value for name, value in environment.items() if name.startswith("DRBOT_")}
    return BotProcess(own, log, tell, words=("wal", DATABASE), name="The archiver of WAL")


def _address(servers: Servers) -> str:
    return f"127.0.0.1:{servers.production.port}"


def _write_files(
    directory: Path, servers: Servers, port: int, access: tuple[Path, str], pager: str
) -> Mapping[str, str]:
    """Keys, secrets and the plan file; the bot's environment."""
    secrets = directory / "secrets"
    secrets.mkdir(mode=0o700)
    var = directory / "var"
    var.mkdir()
    # Passed through by the account of scratch instances, which need a folder in it; the others are closed themselves.
    var.chmod(0o711)
    dsn = servers.production.dsn(DATABASE, role=APPLICATION, password=servers.password)
    addresses = Addresses(
        workspace=servers.slack.team_id,
        channel=INCIDENTS.id,
        production_dsn=private_file(secrets / "production-dsn", servers.production.dsn()),
        production_host=_address(servers),
        spare_dsn=private_file(secrets / "spare-dsn", servers.spare.dsn()),
        spare_host=f"127.0.0.1:{servers.spare.port}",
        application_dsn=private_file(secrets / "application-dsn", dsn),
        health_url=f"http://127.0.0.1:{port}/healthz",
        kubeconfig=access[0],
        namespace=access[1],
        s3_endpoint=servers.objects.endpoint,
        s3_access_key=private_file(secrets / "s3-access-key", servers.objects.access_key),
        s3_secret_key=private_file(secrets / "s3-secret-key", servers.objects.secret_key),
        copies=var / "copies",
        keys=make_keys(secrets),
        pager=private_file(secrets / "pager", pager),
        witnesses=Witnesses(
            file=directory / "witness" / "checkpoints.jsonl",
            access_key=private_file(secrets / "witness-access-key", servers.objects.witness_access_key),
            secret_key=private_file(secrets / "witness-secret-key", servers.objects.witness_secret_key),
        ),
    )
    plan = private_file(directory / "dr-plan.yml", dump(demo_plan(addresses)))
    return {
        "DRBOT_DEMO": "true",
        "DRBOT_PLAN_FILE": str(plan),
        "DRBOT_DATA_DIRECTORY": str(var),
        # Short, so that a bot that is killed is soon followed by another.
        "DRBOT_LEASE_S": "8",
        "DATABASE_URL": servers.memory.dsn(),
        "SLACK_BOT_TOKEN": servers.slack.tokens.bot,
        "SLACK_APP_TOKEN": servers.slack.tokens.app,
        "SLACK_SIGNING_SECRET": servers.slack.tokens.signing_secret,
        "SLACK_API_URL": servers.slack.api_url,
    }


async def _ready(servers: Servers, bot: BotProcess, health_url: str, phases: Phases) -> None:
    """Wait for the bot in Slack, the application and the first dump, or for the bot's failure."""

    async def dump_taken() -> None:
        async with phases.of("First dump, through the bot"):
            await bot.ask("backup", "run", DATABASE, person=OLIVIA.person, timeout=FIRST_DUMP_WITHIN)

    async def bot_in_slack() -> None:
        async with phases.of("The bot in Slack"), servers.slack.control() as control:
            await control.wait_connected(within=timedelta(seconds=60))

    async def application_up() -> None:
        async with phases.of("The application answers"):
            await answers(health_url)

    work = asyncio.gather(bot_in_slack(), application_up(), dump_taken())
    failure = asyncio.ensure_future(bot.failed())
    both: set[asyncio.Future[Any]] = {work, failure}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            await failure
            raise PermanentError(f"The bot has ended; see `{bot.log}`.")
        await work
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def answers(url: str) -> None:
    """Wait until the address answers 200. Raises TemporaryError with what it said last."""
    said = "nothing"
    try:
        async with asyncio.timeout(APPLICATION_WITHIN_S), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(url, timeout=aiohttp.ClientTimeout(total=5)) as answer:
                        said = (await answer.text()).strip()
                        if answer.status == 200:
                            return
                except aiohttp.ClientError as error:
                    said = str(error)
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        limit = f"{APPLICATION_WITHIN_S:g} s"
        raise TemporaryError(f"The application at {url} does not work after {limit}; it says: {said}") from error
