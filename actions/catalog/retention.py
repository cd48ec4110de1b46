"""Retention: what the policy lets go is deleted, by what rests on what; a pin keeps a backup whatever it says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import ClassVar, TypeVar

from actions.backup.physical import Expiry
from actions.contract import Action, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.engines import engine_of
from actions.errors import DrError, TemporaryError, UserError
from actions.ports import Ports
from actions.site import Frozen
from actions.steps.base_choice import server_named
from actions.steps.dump_expiry import OldDumps, dumps_due
from actions.steps.holds import holds_of, planned_findings, planned_words
from actions.steps.kept_backups import Kept, KeptIs, Sort, kept, stays
from actions.steps.phrases import counted, moment, size, span
from actions.steps.pins import Reason
from actions.steps.point_holds import dumps_held
from actions.steps.retention import DeleteBackup, DeleteBases, DeleteDumps, SetPin, enough_left, is_due

T = TypeVar("T")


class ExpireParams(Frozen):
    """Whose backups: of a server or a database (which stands for both); of everything when none is named."""

    server: str | None = None


class Expire(Action[ExpireParams]):
    """Delete what is older than the policy and what nothing rests on. The plan is the dry run: it names everything."""

    name: ClassVar[str] = "backup.expire"
    summary: ClassVar[str] = "Delete the backups and the WAL that the policy lets go"
    risk: ClassVar[Risk] = Risk.REVERSIBLE  # the policy was signed with the plan file
    params = ExpireParams
    steps: ClassVar[tuple[type[Step], ...]] = (DeleteDumps, DeleteBases)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = ()

    async def plan(self, params: ExpireParams, ports: Ports, plan_id: str) -> Plan:
        databases, servers = _chosen(ports, params.server)
        dumps, held_up = await _each(databases, "dumps", partial(dumps_due, ports))
        bases, others = await _each(servers, "base backups", partial(_expiry, ports))
        held_up |= others
        steps: list[Step] = [_dump_step(ports, old) for old in dumps if old.gone]
        steps += [_base_step(ports, expiry) for expiry in bases if expiry.backups or expiry.segments]
        if not steps:
            if held_up:
                raise _none_of(list(held_up.values()))
            raise UserError("Nothing is older than the policy says, so there is nothing to delete.")
        freed = sum(old.bytes for old in dumps) + sum(expiry.bytes for expiry in bases)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Delete what the policy lets go of {_words(dumps, bases)}, {size(freed)}",
            risk=self.risk,
            target=params.server or "backups",
            params=params.model_dump(mode="json"),
            locks=(
                *(Lock(key=f"dump:{key}") for key in databases),
                *(Lock(key=f"base:{server}") for server in servers),
                *(Lock(key=f"proof:{server}") for server in servers),
                # Nobody may be reading them for a restore: that shares it, and one of an incident makes this give way.
                *(Lock(key=f"physical:{server}") for server in servers),
                *(Lock(key=f"database:{key}", exclusive=False) for key in databases),
            ),
            steps=tuple(steps),
            made_at=ports.clock.now(),
            findings=tuple(
                Finding(
                    check=check,
                    verdict=Verdict.WARN,
                    detail=str(why),
                    hint="The next expiry looks again. Take a bucket that is lost for good out of the plan file.",
                )
                for check, why in held_up.items()
            ),
            observations=tuple(
                Observation(name=f"`{name}` stays", value=why)
                for kept in (*(old.kept for old in dumps), *(expiry.kept for expiry in bases))
                for name, why in kept.items()
            ),
        )


async def _each(
    names: Sequence[str], what: str, look: Callable[[str], Awaitable[T]]
) -> tuple[list[T], dict[str, DrError]]:
    """Of those about which something can be said now; and why nothing can be said of the others, which keep what they
    have and hold up nobody else."""
    found: list[T] = []
    held_up: dict[str, DrError] = {}
    for name in names:
        try:
            found.append(await look(name))
        except DrError as error:
            held_up[f"{what} of {name}"] = error
    return found, held_up


def _none_of(errors: Sequence[DrError]) -> DrError:
    """All of them in one; worth another try where one of them is."""
    said = " ".join(str(error) for error in errors)
    return TemporaryError(said) if any(isinstance(error, TemporaryError) for error in errors) else UserError(said)


def _chosen(ports: Ports, name: str | None) -> tuple[list[str], list[str]]:
    site = ports.site
    if name is None:
        return sorted(site.backups), sorted(site.physical)
    # A server may be called like a database, even like one of another server: all that has the name is meant.
    servers = {name, site.databases[name].server if name in site.databases else name} & site.physical.keys()
    databases = [key for key in site.backups if name in (key, site.database(key).server)]
    if not servers and not databases:
        server_named(site, name)  # tells which there are
    return sorted(databases), sorted(servers)


def _dump_step(ports: Ports, old: OldDumps) -> DeleteDumps:
    policy = ports.site.backup(old.database)
    return DeleteDumps(
        old=old,
        bucket=policy.bucket,
        endpoint=ports.site.endpoint_of(policy.bucket),
        prefix=f"{policy.prefix}{old.database}/",
    )


def _base_step(ports: Ports, expiry: Expiry) -> DeleteBases:
    policy = ports.site.physical_of(expiry.server)
    return DeleteBases(
        server=expiry.server,
        expiry=expiry,
        bucket=policy.bucket,
        endpoint=ports.site.endpoint_of(policy.bucket),
        prefix=policy.prefix,
        copy_bucket=policy.copy_bucket,
        copy_endpoint=ports.site.endpoint_of(policy.copy_bucket),
    )


async def _expiry(ports: Ports, server: str) -> Expiry:
    """Whatever an engine proposes, a server never loses its last usable base backup to retention."""
    expiry = await ports.physical.expiry(server)
    if expiry.backups and await enough_left(ports, server, expiry) < 1:
        raise UserError(
            f"Server `{server}` would have no usable base backup left, so nothing of it is deleted. Make one first: "
            f"`/dr-backup base {server}`."
        )
    return expiry


def _words(dumps: Sequence[OldDumps], bases: Sequence[Expiry]) -> str:
    parts = [
        counted(sum(len(old.gone) for old in dumps), "dump"),
        counted(sum(len(expiry.backups) for expiry in bases), "base backup"),
        counted(sum(expiry.segments for expiry in bases), "WAL segment"),
    ]
    return ", ".join(parts)


class PinParams(Frozen):
    """Which backup is kept, and why: a base backup of the server, or a dump of the database that is named."""

    server: str
    backup: str
    why: Reason


class Pin(Action[PinParams]):
    """Keep a backup and what it needs, whatever the policy says: before a migration, or as a legal hold."""

    name: ClassVar[str] = "backup.pin"
    summary: ClassVar[str] = "Keep a dump or base backup whatever the policy says, with the reason (a legal hold)"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = PinParams
    steps: ClassVar[tuple[type[Step], ...]] = (SetPin,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (KeptIs,)

    async def plan(self, params: PinParams, ports: Ports, plan_id: str) -> Plan:
        found = await kept(ports, params.server, params.backup)
        return await _pin_plan(self, plan_id, ports, found, params.why, params.model_dump(mode="json"))


class UnpinParams(Frozen):
    """Which backup need not be kept any more."""

    server: str
    backup: str


class Unpin(Action[UnpinParams]):
    """Take a pin off. A hold is evidence: two others sign that it has ended."""

    name: ClassVar[str] = "backup.unpin"
    summary: ClassVar[str] = "Let a pinned dump or base backup go when the policy lets it go"
    risk: ClassVar[Risk] = Risk.IRREVERSIBLE
    params = UnpinParams
    steps: ClassVar[tuple[type[Step], ...]] = (SetPin,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (KeptIs,)

    async def plan(self, params: UnpinParams, ports: Ports, plan_id: str) -> Plan:
        found = await kept(ports, params.server, params.backup)
        if not found.pinned:
            raise UserError(f"The {found.words} is not pinned, so there is nothing to take off.")
        held = await dumps_held(ports, found.owner) if found.sort is Sort.DUMP else {}
        reason = held.get(found.backup, "")  # a pinned recovery point needs it on
        if reason == found.pinned:
            raise UserError(f"The {found.words} is pinned with a recovery point: {reason}. Take the pin off that one.")
        return await _pin_plan(self, plan_id, ports, found, reason, params.model_dump(mode="json"))


async def _pin_plan(
    action: Pin | Unpin, plan_id: str, ports: Ports, found: Kept, reason: str, params: dict[str, object]
) -> Plan:
    owner, name = found.owner, found.backup
    step = SetPin.of(found, reason)
    lock = f"{'dump' if found.sort is Sort.DUMP else 'base'}:{owner}"
    holds = await holds_of(ports, found.sort, owner, name)
    return Plan(
        id=plan_id,
        action=action.name,
        summary=step.summary,
        risk=action.risk,
        target=name,
        params=params,
        locks=(Lock(key=lock, exclusive=False), Lock(key=f"backup:{name}")),
        steps=(step,),
        preconditions=(found.unchanged,),
        made_at=ports.clock.now(),
        findings=planned_findings(holds) if reason else (),
        observations=(
            Observation(name="state of", value=moment(found.finished_at)),
            Observation(name="stored", value=size(found.stored.bytes)),
            Observation(name="legal hold of the store", value=planned_words(holds, on=bool(reason))),
        ),
    )


class DeleteParams(Frozen):
    """Which backup goes: a base backup of the server, or a dump of the database that is named."""

    server: str
    backup: str


class Delete(Action[DeleteParams]):
    """Delete one backup by name: one that is damaged, or that must not exist any more. Never one that is pinned, that
    others rest on, or of which too few would be left."""

    name: ClassVar[str] = "backup.delete"
    summary: ClassVar[str] = "Delete one dump or base backup by name, whatever its age"
    risk: ClassVar[Risk] = Risk.IRREVERSIBLE
    params = DeleteParams
    steps: ClassVar[tuple[type[Step], ...]] = (DeleteBackup,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (KeptIs,)

    def least_risk(self, plan: Plan) -> Risk:
        due = all(isinstance(step, DeleteBackup) and step.due for step in plan.steps)
        return Risk.REVERSIBLE if due else Risk.IRREVERSIBLE

    async def plan(self, params: DeleteParams, ports: Ports, plan_id: str) -> Plan:
        found = await kept(ports, params.server, params.backup)
        if why := await stays(ports, found.sort, found.owner, found.backup):
            raise UserError(why)
        due = await is_due(ports, found.sort, found.owner, found.backup)
        age, other = ports.clock.now() - found.finished_at, _other_bucket(ports, found)
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Delete {found.words}, {size(found.stored.bytes)}",
            # What the signed policy lets go, its requester may delete a little earlier than the clock would.
            risk=Risk.REVERSIBLE if due else Risk.IRREVERSIBLE,
            target=found.backup,
            params=params.model_dump(mode="json"),
            locks=_locks_of(ports, found),
            steps=(
                DeleteBackup(
                    sort=found.sort,
                    owner=found.owner,
                    backup=found.backup,
                    due=due,
                    bucket=found.stored.bucket,
                    key=found.stored.key,
                    endpoint=ports.site.endpoint_of(found.stored.bucket),
                    engine=_engine(ports, found),
                    stanza=_label(ports, found),
                    copy_bucket=other,
                    copy_endpoint=ports.site.endpoint_of(other),
                ),
            ),
            preconditions=(found.unchanged,),
            made_at=ports.clock.now(),
            findings=()
            if due
            else (
                Finding(
                    check="retention",
                    verdict=Verdict.WARN,
                    detail="The policy of the plan file does not let it go yet.",
                    hint="Nothing brings it back. Look at its name and date before you sign.",
                ),
            ),
            observations=(
                Observation(name="state of", value=f"{moment(found.finished_at)}, {span(age)} old"),
                Observation(name="stored", value=size(found.stored.bytes)),
                Observation(name="can be used", value=found.problem or "yes"),
            ),
            data_loss="" if due else f"The {found.words} can be restored no more, nor a moment that only it leads to.",
        )


def _other_bucket(ports: Ports, found: Kept) -> str:
    """The one that has it as well; empty where one alone is to have it."""
    policy = ports.site.physical_of(found.owner) if found.sort is Sort.BASE else None
    both = () if policy is None or not policy.copy_bucket else policy.base_buckets
    return next((bucket for bucket in both if bucket != found.stored.bucket), "")


def _engine(ports: Ports, found: Kept) -> str:
    return "" if found.sort is Sort.DUMP else ports.site.physical_of(found.owner).engine


def _label(ports: Ports, found: Kept) -> str:
    """What the engine calls the server of a base backup."""
    if found.sort is Sort.DUMP:
        return ""
    policy = ports.site.physical_of(found.owner)
    return engine_of(policy).label(policy)


def _locks_of(ports: Ports, found: Kept) -> tuple[Lock, ...]:
    """As expiry has them: nobody makes, tests or reads backups of it meanwhile."""
    one = Lock(key=f"backup:{found.backup}")
    if found.sort is Sort.DUMP:
        return (one, Lock(key=f"dump:{found.owner}"), Lock(key=f"database:{found.owner}", exclusive=False))
    here = sorted(key for key, database in ports.site.databases.items() if database.server == found.owner)
    return (
        one,
        *(Lock(key=f"{what}:{found.owner}") for what in ("base", "proof", "physical")),
        *(Lock(key=f"database:{key}", exclusive=False) for key in here),
    )
