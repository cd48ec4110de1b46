"""The secrets of a recovery point: which come back with its commit, which sealed with it, and which are people's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from actions.backup.secret_copies import copy_objects
from actions.contract import Finding, Observation, Verdict
from actions.errors import DrError, UserError
from actions.points import RecoveryPoint, SealedPart
from actions.ports import Ports
from actions.secret_copies import HeldSecret, SecretsNow
from actions.site import WorkloadKind, WorkloadRef
from actions.steps import byhand
from actions.steps.phrases import names
from actions.steps.point_cluster import changed_versions, version_line
from actions.steps.point_commits import Commits
from actions.steps.point_share import ManualLine, Share, together
from actions.steps.secret_return import (
    KeepSecrets,
    NotExposed,
    Returning,
    ReturnSecrets,
    Sealed,
    SecretCopyIs,
    SecretsAre,
    custodian,
)

NOBODY = "nobody"
ROLES = (
    "Roles of PostgreSQL keep the passwords that they have now, whatever comes back. An older password in a Secret "
    "that is replaced may not fit them."
)


class State(StrEnum):
    """How a Secret of a point stands now."""

    SAME = "same"
    CHANGED = "changed since"
    MISSING = "missing"
    UNKNOWN = "not known"


@dataclass(frozen=True, kw_only=True)
class Stand:
    """One Secret of a point beside the cluster of now."""

    name: str
    state: State
    then: str  # the server's version
    now: str
    by: str  # what brings it back when it is lost


@dataclass(frozen=True, kw_only=True)
class SecretsShare:
    """`returned`: name -> version now, of those that the commit writes anew; the version of any write is another."""

    returned: Mapping[str, str]
    keeps: Share = field(default_factory=Share)  # while everything still runs
    share: Share = field(default_factory=Share)  # once what reads them is stopped


def stands(point: RecoveryPoint, now: Mapping[str, SecretsNow | None]) -> list[Stand]:
    """Of every Secret of the point. `now`: cluster -> what is there, None where nobody could look."""
    sealed = sealed_secrets(point)
    brought = {name: by for part in point.sealed for name, by in part.brought.items()}
    resealed = {each.name.partition(" ")[2] for each in point.versions if each.name.startswith("SealedSecret ")}
    then = {each.name: each.version for each in point.versions if each.name.startswith("Secret ")}
    then |= {name: held.version for name, (_, held) in sealed.items()}
    found = []
    for name, version in sorted(then.items()):
        looked = now.get(cluster_of(name))
        there = None if looked is None else looked.find(name)
        by = "the sealed copy" if name in sealed else brought.get(name, "" if there is None else there.by)
        if not by and name.partition(" ")[2] in resealed:
            by = "a SealedSecret"
        if looked is None:
            state = State.UNKNOWN
        elif there is None:
            state = State.MISSING
        else:
            held = sealed.get(name)
            same = there.version == version or (held is not None and held[1].content == there.content)
            state = State.SAME if same else State.CHANGED
        found.append(
            Stand(name=name, state=state, then=version, now="" if there is None else there.version, by=by or NOBODY)
        )
    return found


async def secrets_now(ports: Ports, point: RecoveryPoint) -> dict[str, SecretsNow | None]:
    """Of every cluster that the point has Secrets of; None where nobody could look."""
    clusters = {cluster_of(each.name) for each in point.versions if each.name.startswith("Secret ")}
    found: dict[str, SecretsNow | None] = {}
    for cluster in sorted(clusters | {part.cluster for part in point.sealed}):
        try:
            found[cluster] = await ports.secret_copies.current(cluster)
        except DrError:
            found[cluster] = None
    return found


def sealed_secrets(point: RecoveryPoint) -> dict[str, tuple[SealedPart, HeldSecret]]:
    """By name."""
    return {held.name: (part, held) for part in point.sealed for held in part.secrets}


def cluster_of(name: str) -> str:
    """`main` of `Secret main/shop/database`."""
    return name.partition(" ")[2].partition("/")[0]


async def secrets_share(
    ports: Ports,
    point: RecoveryPoint,
    now: RecoveryPoint,
    commits: Commits,
    exposed: tuple[str, ...],
    asked: str,
    plan_id: str,
) -> SecretsShare:
    """What comes back with the commit, what out of the sealed copy, and what is people's. `asked` names, with commas
    between, those that have changed since and are to be replaced. Raises UserError for one that must not be."""
    there = {each.name: each.version for each in now.versions}
    returned: dict[str, str] = {}
    manual: list[ManualLine] = []
    sealed = sealed_secrets(point)
    for name, changed in changed_versions(point, now):
        match commits.brings(name):
            case True:
                returned[name] = there.get(name, "")
            case False if name not in sealed:
                why = f"{changed}; the point's commit does not write it anew, so its value is people's"
                manual.append(version_line(name, why))
            case None if name not in sealed:
                manual.append(version_line(name, changed))
    wanted = _named(asked, point)
    watched = NotExposed(since=point.taken_at, known=exposed)
    if with_commit := sorted(wanted & returned.keys()):
        raise UserError(f"{names(with_commit)} comes back with the commit of the point. Leave it out of `--secret`.")
    keeps: list[Share] = []
    shares = [Share(manual=tuple(manual))]
    for part in (each for each in point.sealed if each.copy_id):
        copy = _copy(ports, part.cluster, part.copy_id)
        if copy is None:
            why = (
                "The plan file says nothing of an escrow any more, so nobody knows here where sealed copy "
                f"`{part.copy_id}` is. Add `backups.escrow` as it was, then ask again."
            )
            shares.append(Share(manual=(_line(f"secrets of {part.cluster}", why, "drbot doctor"),)))
            continue
        before, after = await _of(ports, part, copy, wanted, returned, watched, plan_id)
        keeps.append(before)
        shares.append(after)
    if commits.secrets or any(each.steps for each in shares):
        shares.append(Share(preconditions=(watched,)))
    return SecretsShare(returned=returned, keeps=together(keeps), share=together(shares))


def _named(asked: str, point: RecoveryPoint) -> set[str]:
    """The Secrets that the launcher names, as `database`, `shop/database` or `main/shop/database`."""
    sealed = sealed_secrets(point)
    found: set[str] = set()
    for word in filter(None, (each.strip() for each in asked.split(","))):
        fits = [name for name in sealed if f"/{name.partition(' ')[2]}".endswith(f"/{word}")]
        if not fits:
            held = names(sorted(name.partition(" ")[2] for name in sealed)) or "none"
            raise UserError(f"Recovery point `{point.id}` has no sealed Secret `{word[:60]}`. It has: {held}.")
        if len(fits) > 1:
            raise UserError(f"Several Secrets are called `{word[:60]}`: {names(sorted(fits))}. Name one as a whole.")
        found.add(fits[0])
    return found


async def _of(
    ports: Ports,
    part: SealedPart,
    copy: Sealed,
    wanted: set[str],
    returned: Mapping[str, str],
    watched: NotExposed,
    plan_id: str,
) -> tuple[Share, Share]:
    """Of one cluster: what is done before everything stops, and once it has."""
    exposed = watched.known
    manual: list[ManualLine] = []
    try:
        now = await ports.secret_copies.current(part.cluster)
    except DrError as error:
        why = f"What there is now cannot be looked at, so none is given back: {error}"
        return Share(), Share(manual=(_line(f"secrets of {part.cluster}", why, "drbot doctor"),))
    back: list[Returning] = []
    for held in part.secrets:
        found = now.find(held.name)
        if held.name in returned or (found is not None and _same(held, found.version, found.content)):
            continue
        item = Returning(
            name=held.name,
            content=held.content,
            version_before="" if found is None else found.version,
            content_before="" if found is None else found.content,
        )
        if exposed and held.name in wanted and found is not None:
            raise UserError(
                f"`{item.short}` is not taken back to its value of the point: {exposed[0]} That value may be known to "
                f"others, or be out of use. Leave it out of `--secret`; where it must be, a custodian does it by hand."
            )
        if found is not None and found.by:
            why = f"{found.by} writes it since, and would write it again. Change it there."
            manual.append(_line(f"secret {item.short}", why, "drbot drift"))
        elif exposed and held.name not in wanted:
            what = "is missing" if found is None else "has another value"
            why = f"It {what}. It is not brought back by itself, since it may be so on purpose: {exposed[0]}"
            again = f" `--secret {item.short}` brings it back." if found is None else ""
            manual.append(_line(f"secret {item.short}", f"{why}{again}", custodian(copy, part.cluster, item)))
        elif found is not None and held.name not in wanted:
            why = (
                f"It was written since (version {_number(held.version)}, now {_number(found.version)}), perhaps on "
                f"purpose, so it stays. `--secret {item.short}` takes it back to the point."
            )
            manual.append(_line(f"secret {item.short}", why, custodian(copy, part.cluster, item)))
        else:
            back.append(item)
    if not back:
        return Share(), Share(manual=tuple(manual))
    return await _returned(ports, part, copy, back, manual, watched, plan_id, named=wanted)


async def _returned(
    ports: Ports,
    part: SealedPart,
    copy: Sealed,
    back: list[Returning],
    manual: list[ManualLine],
    watched: NotExposed,
    plan_id: str,
    *,
    named: set[str],
) -> tuple[Share, Share]:
    over = {each.name: each.version_before for each in back}
    try:
        tried = await ports.secret_copies.check(part.cluster, part.copy_id, over)
        problems = dict(tried.problems)
        contents: Mapping[str, str] = tried.contents
    except DrError as error:
        problems, contents = dict.fromkeys(over, str(error)), {}
    for name in sorted(named & problems.keys()):
        raise UserError(
            f"`{name}` cannot be brought back: {problems[name]} Leave it out of `--secret`; the plan then has the "
            "command by which a custodian does it."
        )
    manual += [
        _line(f"secret {each.short}", problems[each.name], custodian(copy, part.cluster, each))
        for each in back
        if each.name in problems
    ]
    # What it holds, under the key of now: the one of then may have been exchanged.
    good = [
        each.model_copy(update={"content": contents[each.name]})
        for each in back
        if each.name not in problems and contents[each.name] != each.content_before
    ]
    if not good:
        return Share(), Share(manual=tuple(manual))
    replaced = tuple(each for each in good if each.version_before)
    kept = _copy(ports, part.cluster, f"before-{plan_id}") if replaced else None
    step = ReturnSecrets(
        cluster=part.cluster,
        sealed=copy,
        secrets=tuple(good),
        kept=kept,
        exposed_since=watched.since,
        exposures=watched.known,
        # Copies of databases that took hours are worth going on with: people decide whether without these.
        optional=True,
    )
    policy = ports.site.escrow
    recipients = () if policy is None else policy.recipients
    keeps = (
        ()
        if kept is None
        else (KeepSecrets(cluster=part.cluster, sealed=kept, secrets=replaced, recipients=recipients),)
    )
    came = names(f"{each.short}{' (replaced)' if each.version_before else ''}" for each in good)
    return Share(steps=keeps), Share(
        steps=(step,),
        preconditions=(
            SecretCopyIs(cluster=part.cluster, copy_id=part.copy_id, sha256=part.sha256),
            SecretsAre(cluster=part.cluster, versions={each.name: each.version_before for each in good}),
        ),
        findings=(Finding(check="passwords", verdict=Verdict.WARN, detail=ROLES),) if replaced else (),
        observations=(Observation(name=f"secrets of {part.cluster} that come back", value=came),),
        manual=tuple(manual),
    )


def unrolled(ports: Ports, share: Share, stopped: Sequence[WorkloadRef]) -> Iterator[ManualLine]:
    """Workloads beside a Secret that is replaced which do not start anew by this plan: a value that was read into the
    environment stays there."""
    refs = sorted({ref for service in ports.site.services.values() for ref in service.workloads})
    for step in share.steps:
        if isinstance(step, ReturnSecrets):
            places = {(step.cluster, each.namespace) for each in step.secrets if each.version_before}
            for ref in refs:
                # The next pod of a CronJob reads it by itself.
                lasts = ref.kind is not WorkloadKind.CRON_JOB and ref not in stopped
                if lasts and (ref.cluster, ref.namespace) in places:
                    why = "It does not start anew by this plan. If it reads a Secret that is replaced, restart it."
                    again = byhand.kubectl(ref.cluster, ref.namespace, "rollout", "restart", byhand.thing(ref))
                    yield _line(f"pods of {ref.name}", why, again)


async def secret_lines(
    ports: Ports, point: RecoveryPoint, now: RecoveryPoint, returned: Mapping[str, str]
) -> list[ManualLine]:
    """After the run: what still is not as in the point. One of `returned` counts once it was written since, and a
    sealed one once it holds what it held."""
    there = {each.name: each.version for each in now.versions}
    sealed = sealed_secrets(point)
    looked = await secrets_now(ports, point) if sealed else {}
    alike = {
        name
        for name, (_, held) in sealed.items()
        if (now_there := looked.get(cluster_of(name))) is not None
        and (found := now_there.find(name)) is not None
        and found.content == held.content
    }
    lines = []
    for name, changed in changed_versions(point, now):
        if name in alike:
            continue
        if name not in returned:
            lines.append(version_line(name, changed))
        elif there.get(name, "") == returned[name]:
            why = "was not written anew since: its controller has not applied the commit, or could not open it"
            lines.append(version_line(name, why))
    return lines


def _copy(ports: Ports, cluster: str, copy_id: str) -> Sealed | None:
    policy = ports.site.escrow
    if policy is None:
        return None
    key = copy_objects(policy, cluster, copy_id)[0]
    return Sealed(copy_id=copy_id, bucket=policy.bucket, endpoint=ports.site.endpoint_of(policy.bucket), key=key)


def _same(held: HeldSecret, version: str, content: str) -> bool:
    return held.version == version or held.content == content


def _number(version: str) -> str:
    return version.partition(" of ")[0]


def _line(what: str, why: str, command: str) -> ManualLine:
    return ManualLine(what=what, why=why, command=command)
