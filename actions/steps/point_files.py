"""The files of a recovery point, as of its moment: by the versions of their bucket, else out of their copy."""

from __future__ import annotations

from actions.buckets import FilesDifference, FilesSource
from actions.contract import Finding, Observation, Precondition, Verdict
from actions.errors import DrError, UserError
from actions.points import FilesPart, RecoveryPoint
from actions.ports import Ports
from actions.site import FilesPolicy
from actions.steps.file_return import brought_back, copy_manifest, removed_versions, return_takes
from actions.steps.files import CopyIs, FilesAtMost, said
from actions.steps.naming import job_name
from actions.steps.phrases import counted, moment
from actions.steps.point_share import ManualLine, Share


async def files_share(ports: Ports, point: RecoveryPoint, part: FilesPart, plan_id: str, number: int) -> Share:
    """What brings them back as job `number` of the plan. Nothing is ever deleted: files that came later stay. Where
    they cannot be looked at, or their copy is gone, they are people's: the rest is worth having without."""
    policy, what = ports.site.files.get(part.name), f"files {part.name}"
    if policy is None:
        why = f"The plan file knows no files `{part.name}` any more."
        return Share(manual=(ManualLine(what=what, why=why, command=f"drbot point list {point.id}"),))
    try:
        return await _share(ports, policy, part, plan_id, number)
    except DrError as error:
        why = f"They stay as they are: {error} Once that is put right, the commands of the point bring them back."
        return Share(manual=(ManualLine(what=what, why=why, command=f"drbot point list {point.id}"),))


async def _share(ports: Ports, policy: FilesPolicy, part: FilesPart, plan_id: str, number: int) -> Share:
    """Raises DrError where a bucket does not answer, or the copy must not be used."""
    what, source = f"files {part.name}", _source(part)
    if source is None:
        why = f"Bucket `{part.bucket}` kept no versions and there was no copy: its files stay as they are."
        return Share(manual=(ManualLine(what=what, why=why, command=f"drbot files status {part.name}"),))
    proof, manifest = await _proof(ports, policy, source)
    found = await ports.files.difference(source)
    replace = found.changed > 0 and found.versioned is True
    manual = () if replace or not found.changed else (_unreplaced(part, found),)
    seen = Observation(name=what, value=f"{_words(found)}; from {said(source)}")
    gone = (*await _gone(ports, policy, part), *_later(part))
    if not found.missing and not replace:
        return Share(findings=gone, observations=(seen,), manual=manual)
    job = job_name(plan_id, number)
    step = brought_back(ports.site, source, found, replace=replace, manifest=manifest, job=job)
    stands = FilesAtMost(source=source, replace=replace, missing=found.missing, changed=found.changed)
    return Share(
        # By then the databases stand: people decide whether files that do not come back undo all of it. Those that were
        # replaced go back together with the databases.
        steps=(step.model_copy(update={"optional": True, "undo_on_failure": replace}),),
        preconditions=(*proof, stands),
        findings=gone,
        observations=(seen,),
        manual=manual,
        takes=return_takes(source, found, replace=replace),
    )


def _source(part: FilesPart) -> FilesSource | None:
    if part.as_of is not None:
        return FilesSource(name=part.name, as_of=part.as_of)
    return FilesSource(name=part.name, copy_id=part.copy_id) if part.copy_id else None


async def _proof(ports: Ports, policy: FilesPolicy, source: FilesSource) -> tuple[tuple[Precondition, ...], str]:
    """What people sign of a copy, and the key of its manifest. Nothing where the bucket itself is the source."""
    if source.copy_id is None:
        return (), ""
    copy = next((each for each in await ports.files.copies(policy.name) if each.manifest.id == source.copy_id), None)
    if copy is None or copy.problem is not None:
        why = "is gone." if copy is None else f"must not be used: {copy.problem}"
        raise UserError(f"Copy `{source.copy_id}` of the point {why}")
    stands = CopyIs(name=policy.name, copy_id=source.copy_id, manifest_sha256=copy.manifest_sha256)
    return (stands,), copy_manifest(policy, source.copy_id)


async def _gone(ports: Ports, policy: FilesPolicy, part: FilesPart) -> tuple[Finding, ...]:
    """Old versions that a rule of the bucket has removed since the point are not found missing."""
    if part.as_of is None:
        return ()
    facts = await ports.buckets.facts(policy.bucket)
    return tuple(removed_versions(facts, policy, policy.prefix, part.as_of, ports.clock.now()))


def _later(part: FilesPart) -> tuple[Finding, ...]:
    """A copy is of the time when it was made, not of the moment of the point."""
    if part.as_of is not None or part.copy_of is None:
        return ()
    detail = f"`{part.name}` is only to be had as of {moment(part.copy_of)}, out of copy `{part.copy_id}`."
    return (Finding(check="moments", verdict=Verdict.WARN, detail=detail),)


def _unreplaced(part: FilesPart, found: FilesDifference) -> ManualLine:
    return ManualLine(
        what=f"files {part.name}",
        why=f"Bucket `{part.bucket}` keeps no versions, so {counted(found.changed, 'changed file')} is left as it is.",
        command=f"drbot files restore {part.name} --from {part.copy_id} --into BUCKET",
    )


def _words(found: FilesDifference) -> str:
    later = f"{found.later} that came later left alone"
    return f"{found.missing} missing and {found.changed} changed of {found.wanted}; {later}"
