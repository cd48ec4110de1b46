"""What a promotion looks at: the instance, the old primary, every application that has its database there."""

from __future__ import annotations

import asyncio

from actions.backup.physical import ScratchFacts, ScratchState, Serving
from actions.errors import PermanentError, TemporaryError, UserError
from actions.ports import DatabaseFacts, FenceFacts, Ports, ServerFacts, WorkloadFacts
from actions.site import Database, Frozen
from actions.steps.application import Repoint
from actions.steps.old_primary_scene import StopScene, look_at_stop
from actions.steps.promotion import ASKED, lives, taken_timelines
from actions.steps.scene import Application, application_of, config_place, host_value
from actions.steps.standing import database_of, known, sound

POSTGRESQL = "5432"


class Moved(Frozen):
    """An application, with its database."""

    database: Database
    application: Application


class PromotionScene(Frozen):
    """Everything a promotion is planned from."""

    facts: ScratchFacts
    serving: Serving
    host: str
    port: int
    key: str
    keys: tuple[str, ...]  # of every database of the plan file on that server
    moved: tuple[Moved, ...]
    stranded: tuple[str, ...]  # services whose ConfigMap nobody knows
    lost: tuple[str, ...]  # databases of the plan file that the instance does not hold
    server: str  # the old primary
    home: ServerFacts | None  # None: it does not answer
    fence: FenceFacts | None
    stop: StopScene | None  # how it is going to be shut down
    databases: tuple[DatabaseFacts, ...]  # of the old primary
    repoints: tuple[Repoint, ...]
    dead: bool  # as the request says
    lives: bool  # something is there that lets nobody in, where `home` is None
    taken: int  # the highest timeline id that is known of the server

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(item.application.service.name for item in self.moved)

    @property
    def workloads(self) -> tuple[WorkloadFacts, ...]:
        found = {facts.ref: facts for item in self.moved for facts in item.application.workloads}
        return tuple(found.values())

    @property
    def stopped(self) -> WorkloadFacts | None:
        """What is scaled to zero to shut the old primary down."""
        return None if self.stop is None or self.stop.refusal else self.stop.place

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


async def look(ports: Ports, scratch: str, wanted: str | None, *, dead: bool) -> PromotionScene:
    """Read what a promotion of this instance needs to know. Raises UserError when it cannot be planned."""
    facts = await _instance(ports, scratch)
    key, database = database_of(ports, facts, wanted)
    if database.service is None:
        raise UserError(
            f"The plan file names no service for `{key}`, so nobody can be pointed at the new primary. Give the "
            f"database back with `/dr-restore swap {facts.id}`, or name its `service`."
        )
    mine = {name: item for name, item in sorted(ports.site.databases.items()) if item.server == facts.server}
    there = {item.name for item in await ports.postgres.databases(facts.name)}
    if database.name not in there:
        raise UserError(f"`{facts.name}` holds no database `{database.name}`. Restore to a later moment.")
    moved, stranded = await _moved(ports, mine)
    home, fence, stop, databases = await _home(ports, database.server)
    configured = await _configured(ports, moved)
    host, port = _address(ports, facts, tuple(configured.values()), home)
    if facts.state is ScratchState.PROMOTED and home is not None:
        own = await ports.postgres.server(facts.name)
        if own.timeline_id == home.timeline_id:
            raise UserError(f"Server `{database.server}` of the plan file is `{facts.name}` already: nothing is left.")
    return PromotionScene(
        facts=facts,
        serving=await ports.scratch.serving(facts.id),
        host=host,
        port=port,
        key=key,
        keys=tuple(mine),
        moved=moved,
        stranded=stranded,
        lost=tuple(name for name, item in mine.items() if item.name not in there),
        server=database.server,
        home=home,
        fence=fence,
        stop=stop,
        databases=databases,
        repoints=_repoints(configured, f"{host}:{port}"),
        dead=dead,
        lives=home is None and await lives(ports, database.server),
        taken=await taken_timelines(ports, database.server),
    )


async def _instance(ports: Ports, scratch: str) -> ScratchFacts:
    """One that stands at its moment, or that a promotion which went wrong later has promoted."""
    found = await known(ports, scratch)
    if found.state is ScratchState.PROMOTED and found.address:
        return found
    if found.state is ScratchState.PROMOTED:
        raise UserError(f"`{found.name}` was promoted and is stopped. Start it with `/dr-restore wake {found.id}`.")
    return await sound(ports, scratch)


def _address(
    ports: Ports, facts: ScratchFacts, configured: tuple[str, ...], home: ServerFacts | None
) -> tuple[str, int]:
    """Where applications will find it. One that knows a host alone goes on to use the port that it has used."""
    host, _, port = facts.address.rpartition(":")
    if facts.opened:
        return host, int(port)
    host = ports.site.scratch.advertised_host or "127.0.0.1"
    if all(_port_of(value) for value in configured):
        return host, int(port)
    source = ports.site.servers.get(facts.server)
    known = (source.host if source is not None else "") or ("" if home is None else home.address)
    return host, int(_port_of(known) or POSTGRESQL)


async def _moved(ports: Ports, databases: dict[str, Database]) -> tuple[tuple[Moved, ...], tuple[str, ...]]:
    """Every application of the server, once, and those that cannot be pointed elsewhere."""
    found: dict[str, Moved] = {}
    for item in databases.values():
        if item.service is not None and item.service not in found:
            found[item.service] = Moved(database=item, application=await application_of(ports, item.service))
    stranded = tuple(name for name, item in found.items() if config_place(item.application) is None)
    return tuple(item for name, item in found.items() if name not in stranded), stranded


async def _home(
    ports: Ports, server: str
) -> tuple[ServerFacts | None, FenceFacts | None, StopScene | None, tuple[DatabaseFacts, ...]]:
    """The old primary, where it answers."""
    try:
        async with asyncio.timeout(ASKED.total_seconds()):
            facts, fence = await ports.postgres.server(server), await ports.postgres.fencing(server)
            return facts, fence, await look_at_stop(ports, server), tuple(await ports.postgres.databases(server))
    except (TemporaryError, PermanentError, TimeoutError):
        return None, None, None, ()


async def _configured(ports: Ports, moved: tuple[Moved, ...]) -> dict[tuple[str, str, str, str], str]:
    """What the ConfigMaps say now: cluster, namespace, name and key -> host."""
    found: dict[tuple[str, str, str, str], str] = {}
    for item in moved:
        place, key = config_place(item.application), item.application.service.config_key
        if place is None:
            continue
        before = (await ports.cluster.config(*place)).get(key)
        if before is None:
            raise UserError(f"ConfigMap `{place[2]}` has no `{key}`. Correct `config_map` in the plan file.")
        found[*place, key] = before
    return found


def _repoints(configured: dict[tuple[str, str, str, str], str], address: str) -> tuple[Repoint, ...]:
    return tuple(
        Repoint(
            cluster=cluster,
            namespace=namespace,
            config_map=config_map,
            key=key,
            value_before=before,
            value=host_value(address, before),
            undo_on_failure=False,  # once promoted, nobody is sent back to the old primary
        )
        for (cluster, namespace, config_map, key), before in configured.items()
    )


def host_of(value: str) -> str:
    """The host of an address, with or without a port."""
    port = _port_of(value)
    return value[: -len(port) - 1] if port else value


def _port_of(value: str) -> str:
    _, separator, port = value.rpartition(":")
    return port if separator and port.isdigit() else ""
