"""Recovery points and escrows: what the policy lets go is deleted, by what needs what; a pin keeps a point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from pydantic import Field

from actions.contract import Action, Finding, Lock, Observation, Plan, Precondition, Risk, Step, Verdict
from actions.errors import UserError
from actions.points import PointEntry, RecoveryPoint
from actions.ports import Ports
from actions.site import EscrowPolicy, Frozen, PointsPolicy
from actions.steps.escrow_expiry import OldEscrows, escrows_due
from actions.steps.holds import holds_of, planned_findings
from actions.steps.kept_backups import Kept, KeptIs, Sort, find
from actions.steps.phrases import counted, moment, names, span
from actions.steps.pins import Reason
from actions.steps.point_compare import fingerprint
from actions.steps.point_expiry import points_due
from actions.steps.point_holds import dumps_held, point_reason
from actions.steps.record_retention import (
    DeleteEscrows,
    DeletePoints,
    DeleteSecretCopies,
    PointIsThere,
    SetPointPin,
)
from actions.steps.retention import SetPin
from actions.steps.secret_copy_expiry import OldCopies, copies_due

SHOWN = 10


class ExpirePointsParams(Frozen):
    """Takes nothing."""


class ExpirePoints(Action[ExpirePointsParams]):
    """Delete recovery points that are older than the policy. The plan is the dry run: it names everything."""

    name: ClassVar[str] = "point.expire"
    summary: ClassVar[str] = "Delete the recovery points that the policy lets go"
    risk: ClassVar[Risk] = Risk.REVERSIBLE  # the policy was signed with the plan file
    params = ExpirePointsParams
    steps: ClassVar[tuple[type[Step], ...]] = (DeletePoints,)

    async def plan(self, params: ExpirePointsParams, ports: Ports, plan_id: str) -> Plan:
        policy = _points(ports)
        old = await points_due(ports, policy)
        if not old.gone:
            raise UserError(
                f"No recovery point may go by the policy ({_words(policy)}), so there is nothing to delete."
            )
        step = DeletePoints(
            old=old, bucket=policy.bucket, endpoint=ports.site.endpoint_of(policy.bucket), prefix=policy.prefix
        )
        more = f", and {old.later} more by the next expiry" if old.later else ""
        return Plan(
            id=plan_id,
            action=self.name,
            summary=step.summary + more,
            risk=self.risk,
            target="recovery-points",
            params=params.model_dump(mode="json"),
            # A restore of one shares it.
            locks=(Lock(key="recovery-points"),),
            steps=(step,),
            made_at=ports.clock.now(),
            observations=(Observation(name="policy", value=_words(policy)), *_kept(old.kept.items())),
        )


class ExpireEscrowsParams(Frozen):
    """Of one cluster; of all without."""

    cluster: str | None = None


class ExpireEscrows(Action[ExpireEscrowsParams]):
    """Delete escrows that are older than the policy and that neither a recovery point nor a key needs, and sealed
    copies of Secrets that belong to no recovery point."""

    name: ClassVar[str] = "secrets.expire"
    summary: ClassVar[str] = "Delete the escrows that the policy lets go and nothing needs"
    risk: ClassVar[Risk] = Risk.REVERSIBLE  # the policy was signed with the plan file
    params = ExpireEscrowsParams
    steps: ClassVar[tuple[type[Step], ...]] = (DeleteEscrows, DeleteSecretCopies)

    async def plan(self, params: ExpireEscrowsParams, ports: Ports, plan_id: str) -> Plan:
        policy = _escrow(ports)
        clusters = _clusters(ports, params.cluster)
        keys = [await escrows_due(ports, policy, cluster) for cluster in clusters if _sealed_secrets(ports, cluster)]
        copies = [await copies_due(ports, policy, cluster) for cluster in clusters]
        due: list[OldEscrows | OldCopies] = [*keys, *copies]
        place: dict[str, Any] = {
            "bucket": policy.bucket,
            "endpoint": ports.site.endpoint_of(policy.bucket),
            "prefix": policy.prefix,
        }
        steps: tuple[Step, ...] = (
            *(DeleteEscrows(old=old, **place) for old in keys if old.gone),
            *(DeleteSecretCopies(old=old, **place) for old in copies if old.gone),
        )
        if not steps:
            raise UserError(f"No escrow may go by the policy ({_words(policy)}), so there is nothing to delete.")
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Delete {counted(sum(len(old.gone) for old in due), 'old escrow')} from bucket `{policy.bucket}`",
            risk=self.risk,
            target=params.cluster or "escrow",
            params=params.model_dump(mode="json"),
            locks=tuple(Lock(key=f"escrow:{cluster}") for cluster in clusters),
            steps=steps,
            made_at=ports.clock.now(),
            observations=(
                Observation(name="policy", value=_words(policy)),
                *_kept((name, why) for old in due for name, why in old.kept.items()),
            ),
        )


class PinPointParams(Frozen):
    """Which recovery point is kept, and why."""

    point: str = Field(min_length=1)
    why: Reason


class PinPoint(Action[PinPointParams]):
    """Keep a recovery point whatever the policy says, with its escrow, its sealed Secrets, its images and the dumps
    that it names."""

    name: ClassVar[str] = "point.pin"
    summary: ClassVar[str] = "Keep a recovery point, its dumps, escrow and images whatever the policy says"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = PinPointParams
    steps: ClassVar[tuple[type[Step], ...]] = (SetPin, SetPointPin)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (PointIsThere, KeptIs)

    async def plan(self, params: PinPointParams, ports: Ports, plan_id: str) -> Plan:
        entry = await _entry(ports, params.point)
        if entry.problem is not None:
            raise UserError(f"{entry.problem} Pin another one; nothing deletes this one by itself.")
        dumps = [dump for dump in await _dumps(ports, entry.point) if dump is not None and not dump.pinned]
        reason = point_reason(entry.point.id, params.why)
        steps = (*(SetPin.of(dump, reason) for dump in dumps), _point_pin(entry, params.why))
        holds = [await holds_of(ports, dump.sort, dump.owner, dump.backup) for dump in dumps]
        holds.append(await ports.points.holds(entry.point.id))
        unheld = {finding.detail: finding for each in holds for finding in planned_findings(each)}
        findings = (*await _not_held(ports, entry.point), *unheld.values())
        return _plan(self, plan_id, ports, entry, dumps, steps, params, findings)


class UnpinPointParams(Frozen):
    """Which recovery point need not be kept any more."""

    point: str = Field(min_length=1)


class UnpinPoint(Action[UnpinPointParams]):
    """Take a pin off, and off the dumps that were pinned with it. A hold is evidence: two others sign that it ended."""

    name: ClassVar[str] = "point.unpin"
    summary: ClassVar[str] = "Let a pinned recovery point, and the dumps pinned with it, go when the policy does"
    risk: ClassVar[Risk] = Risk.IRREVERSIBLE
    params = UnpinPointParams
    steps: ClassVar[tuple[type[Step], ...]] = (SetPin, SetPointPin)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (PointIsThere, KeptIs)

    async def plan(self, params: UnpinPointParams, ports: Ports, plan_id: str) -> Plan:
        entry = await _entry(ports, params.point)
        if not entry.pinned:
            raise UserError(f"Recovery point `{params.point}` is not pinned, so there is nothing to take off.")
        mark = point_reason(entry.point.id, "")
        dumps = [dump for dump in await _dumps(ports, entry.point) if dump is not None and dump.pinned.startswith(mark)]
        # A dump that another pinned point needs goes on with the pin of that one.
        left = [(await dumps_held(ports, dump.owner, but=entry.point.id)).get(dump.backup, "") for dump in dumps]
        pins = (SetPin.of(dump, reason) for dump, reason in zip(dumps, left, strict=True))
        steps = (*pins, _point_pin(entry, ""))
        return _plan(self, plan_id, ports, entry, dumps, steps, params, ())


def _plan(
    action: PinPoint | UnpinPoint,
    plan_id: str,
    ports: Ports,
    entry: PointEntry,
    dumps: Sequence[Kept],
    steps: tuple[Step, ...],
    params: Frozen,
    findings: tuple[Finding, ...],
) -> Plan:
    point = entry.point
    return Plan(
        id=plan_id,
        action=action.name,
        summary=steps[-1].summary,
        risk=action.risk,
        target=point.id,
        params=params.model_dump(mode="json"),
        locks=(
            Lock(key="recovery-points"),
            *(Lock(key=f"dump:{owner}", exclusive=False) for owner in sorted({dump.owner for dump in dumps})),
            *(Lock(key=f"backup:{dump.backup}") for dump in dumps),
        ),
        steps=steps,
        preconditions=(
            PointIsThere(point=point.id, sha256=fingerprint(point)),
            *(dump.unchanged for dump in dumps),
        ),
        made_at=ports.clock.now(),
        findings=findings,
        observations=(
            Observation(name="databases as of", value=moment(point.moment)),
            Observation(name="dumps", value=names(dump.backup for dump in dumps) or "none"),
            Observation(name="escrow", value=names(part.escrow for part in point.secrets) or "none"),
        ),
    )


def _point_pin(entry: PointEntry, reason: str) -> SetPointPin:
    return SetPointPin(point=entry.point.id, reason=reason, reason_before=entry.pinned)


async def _entry(ports: Ports, wanted: str) -> PointEntry:
    _points(ports)
    found = await ports.points.find(wanted)
    if found is None:
        raise UserError(f"There is no recovery point `{wanted}`. Look with `/dr point list`.")
    return found


async def _dumps(ports: Ports, point: RecoveryPoint) -> list[Kept | None]:
    """Those it names; None for one that is gone."""
    named = [(part.database, part.backup) for part in point.databases if part.backup]
    return [
        await find(ports, Sort.DUMP, database, backup) if database in ports.site.backups else None
        for database, backup in named
    ]


async def _not_held(ports: Ports, point: RecoveryPoint) -> tuple[Finding, ...]:
    """What the pin cannot keep, each with the time until which it is there."""
    found: list[str] = []
    dumps = iter(await _dumps(ports, point))
    for part in point.databases:
        dump = next(dumps) if part.backup else None
        policy = ports.site.physical.get(part.server)
        if part.by_wal and policy is not None:
            rest = "only its dump is left" if dump is not None else "nothing is left of it"
            found.append(
                f"The WAL that leads `{part.database}` to {moment(point.moment)} is kept {span(policy.wal_retention)}; "
                f"after that {rest}."
            )
        elif dump is None:
            found.append(f"The dump of `{part.database}` is gone: it cannot be brought back as of this point.")
    found += [
        f"The files `{part.name}` stay as long as the plan file keeps their versions or copies." for part in point.files
    ]
    hint = "Where it must be kept, copy it to a place of its own; a base backup is pinned with `/dr-backup pin`."
    return tuple(Finding(check="not held", verdict=Verdict.WARN, detail=text, hint=hint) for text in found)


def _points(ports: Ports) -> PointsPolicy:
    if ports.site.points is None:
        raise UserError("The plan file says nothing of recovery points. Add `backups.recovery_points`.")
    return ports.site.points


def _escrow(ports: Ports) -> EscrowPolicy:
    if ports.site.escrow is None:
        raise UserError("The plan file says nothing of an escrow. Add `backups.escrow` with a bucket.")
    return ports.site.escrow


def _clusters(ports: Ports, wanted: str | None) -> list[str]:
    """Those that something is in escrow of: keys of a controller, or Secrets of services."""
    having = {name for name in ports.site.clusters if _sealed_secrets(ports, name)} | {*ports.site.service_clusters}
    if wanted is None:
        return sorted(having)
    if wanted not in having:
        raise UserError(f"Name one of the clusters with an escrow: {names(sorted(having)) or 'there is none'}.")
    return [wanted]


def _sealed_secrets(ports: Ports, cluster: str) -> bool:
    known = ports.site.clusters.get(cluster)
    return known is not None and bool(known.sealed_secrets)


def _words(policy: PointsPolicy | EscrowPolicy) -> str:
    return f"kept {span(policy.retention)}, and always the {policy.minimum} newest"


def _kept(kept: Iterable[tuple[str, str]]) -> list[Observation]:
    shown = list(kept)
    found = [Observation(name=f"`{name}` stays", value=why) for name, why in shown[:SHOWN]]
    rest = len(shown) - SHOWN
    return [*found, Observation(name="others", value=f"{rest} more stay")] if rest > 0 else found
