"""The databases of a recovery point: each copied beside production as it was, compared, and ready to be switched in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from actions.backup.physical import ScratchFacts
from actions.backup.windows import ends_of, reachable
from actions.contract import Finding, Lock, Observation, Verdict
from actions.errors import UserError
from actions.points import DatabasePart, RecoveryPoint
from actions.ports import CatalogueEntry, Ports
from actions.site import DatabaseRef
from actions.steps.choice import chosen, loss_sentence, restore_estimate
from actions.steps.dump_loading import loaded
from actions.steps.facts import BackupIs, DatabaseIs, DiskFree, NamesFree, ServerIs
from actions.steps.known_backups import known_backups
from actions.steps.moments import exact
from actions.steps.naming import quarantine_name, restore_name, scratch_mark
from actions.steps.phrases import moment, size
from actions.steps.point_share import Share
from actions.steps.restore_findings import restore_findings
from actions.steps.scene import look
from actions.steps.standing import known
from actions.steps.swap_scene import look_at, swap_findings, swap_loss, swap_observations
from actions.steps.switch import Switch


@dataclass(frozen=True, kw_only=True)
class Return:
    """One database of the point. The steps of `share` are those beside production, the rest is its switch."""

    share: Share
    switch: Switch
    locks: tuple[Lock, ...]
    estimate: timedelta
    loss: str


async def database_returns(ports: Ports, point: RecoveryPoint, scratch: str | None, plan_id: str) -> list[Return]:
    """In the order of the point. Raises UserError with the exact command where something has to be made first."""
    named = None if scratch is None else await known(ports, scratch)
    if named is not None and named.server not in {part.server for part in point.databases if part.by_wal}:
        raise UserError(
            f"`{named.name}` holds server `{named.server}`, of which `{point.id}` needs no scratch instance. "
            "Leave out `--scratch`."
        )
    instances = await ports.scratch.instances() if any(part.by_wal for part in point.databases) else ()
    found = []
    for number, part in enumerate(point.databases, 1):
        asked = named is not None and named.server == part.server
        if part.by_wal and (asked or not await _dump_alone(ports, point, part, instances)):
            found.append(await _out_of_scratch(ports, point, part, instances, named, plan_id, number))
        else:
            found.append(await _out_of_dump(ports, part, plan_id, number))
    return found


async def _dump_alone(ports: Ports, point: RecoveryPoint, part: DatabasePart, known: Sequence[ScratchFacts]) -> bool:
    """Whether the WAL that led to the point is gone, as it is once it is older than it is kept: the dump that the point
    names is left, and a pin on the point holds that."""
    if not part.backup or any(facts.server == part.server for facts in known if _stands(facts, point)):
        return False
    if part.server not in ports.site.physical:
        return True
    entries = await ports.physical.catalogue(part.server)
    return not any(
        stretch.start <= point.moment <= stretch.end
        for window in await ports.physical.windows(part.server)
        for stretch in reachable(window, ends_of(entries, window))
    )


async def side_by_side(ports: Ports, share: Share) -> Share:
    """The same, with the room that its copies need counted together: they lie on a server at the same time."""
    needed: dict[str, list[int]] = {}
    for each in share.preconditions:
        if isinstance(each, DiskFree):
            needed.setdefault(each.server, []).append(each.at_least)
    findings = []
    for server, parts in needed.items():
        free = (await ports.postgres.server(server)).free_bytes if len(parts) > 1 else None
        if free is not None and free < sum(parts):
            findings.append(
                Finding(
                    check="disk",
                    verdict=Verdict.STOP,
                    detail=f"`{server}` has {size(free)} of disk free; the copies of {len(parts)} databases, which lie "
                    f"there beside production, need {size(sum(parts))}.",
                    hint="Free or add disk, or bring them back one by one: `/dr point list POINT` has the commands.",
                )
            )
    others = [each for each in share.preconditions if not isinstance(each, DiskFree)]
    rooms = [DiskFree(server=server, at_least=sum(parts)) for server, parts in needed.items()]
    return replace(share, preconditions=(*others, *rooms), findings=(*share.findings, *findings))


async def _out_of_scratch(
    ports: Ports,
    point: RecoveryPoint,
    part: DatabasePart,
    instances: Sequence[ScratchFacts],
    named: ScratchFacts | None,
    plan_id: str,
    number: int,
) -> Return:
    facts = _at(point, part, instances, named)
    scene = await look_at(ports, facts.id, part.database)
    share = Share(
        steps=scene.copied(plan_id, number),
        preconditions=scene.preconditions(plan_id),
        findings=tuple(swap_findings(scene)),
        observations=(
            Observation(name=part.database, value=f"out of `{facts.name}`, which stands at {scene.moment}"),
            *(Observation(name=f"{part.database}: {each.name}", value=each.value) for each in swap_observations(scene)),
        ),
    )
    return Return(
        share=share,
        switch=scene.switch(plan_id),
        locks=(Lock(key=f"scratch:{facts.id}", exclusive=False), *_locks(part.database, scene.database.service)),
        estimate=scene.estimate,
        loss=f"`{part.database}`: {swap_loss(scene, ports)}",
    )


def _at(
    point: RecoveryPoint, part: DatabasePart, instances: Sequence[ScratchFacts], named: ScratchFacts | None
) -> ScratchFacts:
    """The instance that was restored to the very moment of the point, the newest of several."""
    make = f'`/dr-restore point {part.database} --at "{exact(point.moment)}"`'
    if named is not None and named.server == part.server:
        if not _stands(named, point):
            target = "an unknown moment" if named.restored is None else named.restored.target
            raise UserError(
                f"`{named.name}` was restored to {target}, not to {exact(point.moment)} as `{point.id}` says. "
                f"Make one there with {make}, then ask again."
            )
        return named
    fit = [facts for facts in instances if facts.server == part.server and _stands(facts, point)]
    if not fit:
        raise UserError(
            f"No scratch instance of server `{part.server}` stands at {exact(point.moment)}, so nobody could see the "
            f"difference before signing. Make one with {make}, look at its report, then ask again."
        )
    return max(fit, key=lambda facts: facts.made_at)


def _stands(facts: ScratchFacts, point: RecoveryPoint) -> bool:
    restored = facts.restored
    return restored is not None and restored.target.inclusive and restored.target.time == point.moment


async def _out_of_dump(ports: Ports, part: DatabasePart, plan_id: str, number: int) -> Return:
    catalogue = await known_backups(ports, part.database)
    entry = chosen(part.database, catalogue.entries, backup=part.backup, before=None)
    scene = await look(ports, part.database, entry, instance_suspect=False)
    if scene.home is None or scene.on_spare:
        raise UserError(
            f"{scene.elsewhere or scene.home_error} Bring the server back, or restore this database alone with "
            f"`/dr-restore {part.database} --from {part.backup}`."
        )
    database, server = scene.database, scene.home.server
    into = DatabaseRef(server.name, restore_name(database.name, plan_id))
    aside = quarantine_name(database.name, plan_id)
    production = scene.production
    application = scene.application
    switch = Switch(
        plan_id=plan_id,
        home=database.ref,
        production=production,
        target=database.ref,
        system_id=server.system_id,
        copy_name=into.name,
        copy_mark=scratch_mark(plan_id),
        aside=aside,
        owner=database.owner,
        application=application,
        workloads=() if application is None else application.workloads,
    )
    share = Share(
        steps=loaded(scene, into, plan_id, number),
        preconditions=(
            BackupIs(database=scene.key, backup=entry.manifest.id, manifest_sha256=entry.manifest_sha256),
            ServerIs.of(server, serves=True),
            DatabaseIs(target=database.ref, oid=None if production is None else production.oid),
            NamesFree(server=server.name, names=(into.name, aside)),
            DiskFree(server=server.name, at_least=scene.disk_needed),
        ),
        findings=(*_later(part, entry), *restore_findings(scene, (into.name, aside)), *catalogue.findings),
        observations=(
            Observation(
                name=part.database,
                value=f"out of dump `{entry.manifest.id}`, state of {moment(entry.manifest.snapshot_at)}",
            ),
        ),
    )
    return Return(
        share=share,
        switch=switch,
        locks=_locks(part.database, database.service),
        estimate=restore_estimate(entry, await ports.runs.last_load(part.database)),
        loss=f"`{part.database}`: {loss_sentence(database, entry, scene.now)}",
    )


def _later(part: DatabasePart, entry: CatalogueEntry) -> Iterator[Finding]:
    """Its dump is of a moment of its own."""
    if part.by_wal:
        yield Finding(
            check="moments",
            verdict=Verdict.WARN,
            detail=f"No WAL leads `{part.database}` to the moment of the point any more: it is only to be had as of "
            f"{moment(entry.manifest.snapshot_at)}, out of its dump.",
        )


def _locks(database: str, service: str | None) -> tuple[Lock, ...]:
    lock = Lock(key=f"database:{database}")
    return (lock,) if service is None else (lock, Lock(key=f"service:{service}"))
