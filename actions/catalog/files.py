"""Files: copied into another region every day, and brought back out of a copy or of the bucket's own versions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from actions.buckets import CopiesExpiry, FilesCopy, FilesDifference, FilesManifest, FilesSource
from actions.contract import Action, Finding, Lock, Observation, Plan, Precondition, Query, Report, Risk, Step, Verdict
from actions.errors import UNKNOWN_NAME, DrError, RefusedError, UserError, VerificationError
from actions.ports import Ports
from actions.site import FilesPolicy, Frozen
from actions.steps.file_return import brought_back, copy_manifest, copying_takes, removed_versions, return_takes
from actions.steps.files import BringBackFiles, CopyFiles, CopyIs, ExpireCopies, FilesAtMost, said
from actions.steps.moments import moment_of
from actions.steps.naming import backup_id, job_name
from actions.steps.phrases import counted, moment, names, size, span
from actions.steps.side_copies import few_files, late_files


class FilesParams(Frozen):
    """One copy of files of the plan, or all."""

    name: str | None = None


class FilesState(Query[FilesParams]):
    """Every copy in the catalogue, those that must not be used included."""

    name: ClassVar[str] = "status.files"
    summary: ClassVar[str] = "List the copies of files, with what their comparison found"
    params = FilesParams

    async def read(self, params: FilesParams, ports: Ports) -> Report:
        policies = sorted(ports.site.files) if params.name is None else [ports.site.files_of(params.name).name]
        rows: list[tuple[str, ...]] = []
        findings: list[Finding] = []
        count = 0
        for name in policies:
            try:
                copies = await ports.files.copies(name)
            except DrError as error:
                findings.append(_stop(f"files {name}", str(error), "Look at the bucket of the copies."))
                continue
            count += len(copies)
            rows += [_row(name, copy) for copy in copies] or _versions_row(ports.site.files[name])
            findings += copy_findings(ports.site.files[name], copies, ports)
        whose = names(policies) or "no files: the plan has neither `copy_to` nor `versions`"
        return Report(
            title=f"{count} {'copy' if count == 1 else 'copies'} of {whose}",
            columns=("files", "copy", "state of", "files in it", "size", "new", "deleted since", "compared"),
            rows=tuple(rows),
            findings=tuple(finding for finding in findings if finding.verdict is not Verdict.OK),
        )


def _versions_row(policy: FilesPolicy) -> list[tuple[str, ...]]:
    """Of files that have no copy by the plan."""
    if policy.copy_bucket:
        return []
    kept = "for ever" if policy.retention == timedelta.max else span(policy.retention)
    return [(policy.name, f"none: versions in `{policy.bucket}`, {kept}", *[""] * 6)]


def _row(name: str, copy: FilesCopy) -> tuple[str, ...]:
    found = copy.manifest
    if copy.problem is not None:
        return (name, found.id, "", "", "", "", "", f"must not be used: {copy.problem}")
    compared = found.comparison
    changed = f", {compared.meanwhile} changed meanwhile" if compared.meanwhile else ""
    changed += f"; {compared.unlike}" if compared.unlike else ""
    return (
        name,
        found.id,
        moment(found.state_of),
        str(found.objects),
        size(found.bytes),
        f"{found.copied} ({size(found.copied_bytes)})",
        str(found.tombstones),
        f"{compared.sampled} read again{changed}",
    )


def copy_findings(policy: FilesPolicy, copies: Sequence[FilesCopy], ports: Ports) -> list[Finding]:
    """Whether there is a copy, whole and not late."""
    check = f"files {policy.name}"
    found = [
        _warn(check, f"Copy `{copy.manifest.id}` must not be used: {copy.problem}", "Make a new one.")
        for copy in copies
        if copy.problem is not None
    ]
    now = ports.clock.now()
    good = sorted((copy.manifest for copy in copies if copy.problem is None), key=lambda copy: copy.state_of)
    found += [_unlike(check, policy, copy) for copy in good[-1:] if copy.comparison.unlike]
    found += [_warn(check, few.text, few.hint) for few in (few_files(policy, copies),) if few is not None]
    usable = [copy.state_of for copy in good]
    if not policy.copy_bucket:
        return [Finding(check=check, verdict=Verdict.OK, detail=f"kept by the versions of bucket `{policy.bucket}`")]
    if late := late_files(policy, copies, now):
        return [(_warn if usable else _stop)(check, late.text, late.hint), *found]
    return found or [Finding(check=check, verdict=Verdict.OK, detail=f"newest copy {span(now - max(usable))} old")]


def _unlike(check: str, policy: FilesPolicy, copy: FilesManifest) -> Finding:
    hint = (
        f"Look whether the bot's keys may read every file of bucket `{policy.bucket}`: one that cannot be read is left "
        f"out. Then `/dr files copy {policy.name}`."
    )
    return _warn(check, f"Copy `{copy.id}` is not like its source: {copy.comparison.unlike}.", hint)


class CopyParams(Frozen):
    """Which files."""

    name: str = Field(min_length=1)
    requested_by: str = ""


class Copy(Action[CopyParams]):
    """Copy the files of the plan into their other region, and delete the copies whose time is over."""

    name: ClassVar[str] = "files.copy"
    summary: ClassVar[str] = "Copy files into another region, compare both, delete copies over their time"
    risk: ClassVar[Risk] = Risk.REVERSIBLE
    params = CopyParams
    steps: ClassVar[tuple[type[Step], ...]] = (CopyFiles, ExpireCopies)

    async def plan(self, params: CopyParams, ports: Ports, plan_id: str) -> Plan:
        policy = ports.site.files_of(params.name)
        if not policy.copy_bucket:
            raise UserError(
                f"`{policy.name}` is kept by the versions of bucket `{policy.bucket}`: the plan file has no `copy_to` "
                f"for it. Bring files back with `/dr files undelete {policy.name} TIME`."
            )
        copies = await ports.files.copies(params.name)
        folder = f"{policy.copy_prefix}files/{policy.name}/copies/"
        expiry, unreadable = await _expiry(policy, folder, ports)
        copy = CopyFiles(
            job=job_name(plan_id, 1),
            name=policy.name,
            copy_id=backup_id(policy.name, plan_id),
            bucket=policy.bucket,
            prefix=policy.prefix,
            copy_bucket=policy.copy_bucket,
            endpoint=ports.site.endpoint_of(policy.bucket),
            copy_endpoint=ports.site.endpoint_of(policy.copy_bucket),
            requested_by=params.requested_by,
        )
        expire = ExpireCopies(
            job=job_name(plan_id, 2),
            name=policy.name,
            copy_bucket=policy.copy_bucket,
            copy_endpoint=ports.site.endpoint_of(policy.copy_bucket),
            folder=folder,
            copies=expiry.copies,
            days=policy.retention.days,
        )
        usable = [found.manifest for found in copies if found.problem is None]
        return Plan(
            id=plan_id,
            action=self.name,
            summary=f"Copy `{policy.component}` into `{policy.copy_bucket}` as `{copy.copy_id}`",
            risk=self.risk,
            target=policy.name,
            params=params.model_dump(mode="json"),
            locks=(Lock(key=f"files:{policy.name}"),),
            steps=(copy, expire) if expiry.copies or expiry.objects else (copy,),
            made_at=ports.clock.now(),
            findings=(*(_broken(found) for found in copies if found.problem is not None), *unreadable),
            observations=(
                Observation(name="newest copy", value=moment(usable[0].state_of) if usable else "none"),
                Observation(name="files in it", value=str(usable[0].objects) if usable else "0"),
            ),
            estimate=copying_takes(usable[0].copied_bytes if usable else 0),
        )


async def _expiry(policy: FilesPolicy, folder: str, ports: Ports) -> tuple[CopiesExpiry, list[Finding]]:
    """What is over its time. One copy that cannot be read keeps everything from being deleted, never a new copy from
    being made."""
    try:
        return await ports.files.expiry(policy.name), []
    except VerificationError as error:
        hint = (
            f"Look below `s3://{policy.copy_bucket}/{folder}`. If its signer left the plan file, put it back into "
            "`signers`; if its files were damaged, delete its folder there. The next copy then deletes again."
        )
        return CopiesExpiry(name=policy.name), [_warn("expiry", f"No old copy is deleted: {error}", hint)]


class RestoreParams(Frozen):
    """Which files, out of which copy; the newest that holds any when none is named."""

    name: str = Field(min_length=1)
    prefix: str = ""
    copy_id: str | None = None
    replace: bool = False
    into: str | None = None  # another bucket of the plan


class Restore(Action[RestoreParams]):
    """Bring back what is missing in a bucket, out of a copy in another region."""

    name: ClassVar[str] = "files.restore"
    summary: ClassVar[str] = "Bring files back from a copy, into their bucket or another one"
    risk: ClassVar[Risk] = Risk.DESTRUCTIVE
    params = RestoreParams
    steps: ClassVar[tuple[type[Step], ...]] = (BringBackFiles,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (CopyIs, FilesAtMost)

    def least_risk(self, plan: Plan) -> Risk:
        return _least_risk(plan)

    async def plan(self, params: RestoreParams, ports: Ports, plan_id: str) -> Plan:
        policy = ports.site.files_of(params.name)
        if params.into is not None and params.into not in ports.site.buckets:
            raise RefusedError(f"The plan file knows no bucket `{params.into}`. Name one of it.", code=UNKNOWN_NAME)
        copy = _chosen(params.copy_id, await ports.files.copies(params.name), policy)
        source = FilesSource(name=policy.name, prefix=params.prefix, copy_id=copy.manifest.id, into=params.into)
        settled = params.model_copy(update={"copy_id": copy.manifest.id})
        manifest = copy_manifest(policy, copy.manifest.id)
        plan = await _bring_back(self.name, source, params.replace, manifest, ports, plan_id)
        stands = CopyIs(name=policy.name, copy_id=copy.manifest.id, manifest_sha256=copy.manifest_sha256)
        return plan.model_copy(
            update={
                "params": settled.model_dump(mode="json"),
                "preconditions": (stands, *plan.preconditions),
                "data_loss": f"The copy is of {moment(copy.manifest.state_of)}: what was stored later is not in it.",
            }
        )


def _chosen(wanted: str | None, copies: Sequence[FilesCopy], policy: FilesPolicy) -> FilesCopy:
    fit = [copy for copy in copies if wanted in (None, copy.manifest.id)]
    usable = [copy for copy in fit if copy.problem is None]
    if usable:
        # Of a bucket that was emptied the newest copies hold nothing, which nobody wants back unless it is named.
        return next((copy for copy in usable if copy.manifest.objects), usable[0])
    if fit and wanted is not None:
        raise UserError(
            f"Copy `{wanted}` must not be used: {fit[0].problem} Choose another one "
            f"of `/dr files status {policy.name}`."
        )
    if not policy.copy_bucket:
        raise UserError(
            f"`{policy.name}` has no copy: the versions of bucket `{policy.bucket}` are its backup. Bring files back "
            f"with `/dr files undelete {policy.name} TIME`."
        )
    what = "no usable copy" if wanted is None else f"no copy `{wanted}`"
    raise UserError(f"`{policy.name}` has {what}. Look with `/dr files status {policy.name}`.")


class UndeleteParams(Frozen):
    """Which files, as of when."""

    name: str = Field(min_length=1)
    at: str = Field(min_length=1)  # 10:30, 2026-02-26 10:30:00 UTC, 2h ago
    prefix: str = ""
    replace: bool = False


class Undelete(Action[UndeleteParams]):
    """Bring files back out of the versions of their own bucket."""

    name: ClassVar[str] = "files.undelete"
    summary: ClassVar[str] = "Bring deleted files back as of a moment, out of the bucket's own versions"
    risk: ClassVar[Risk] = Risk.DESTRUCTIVE
    params = UndeleteParams
    steps: ClassVar[tuple[type[Step], ...]] = (BringBackFiles,)
    preconditions: ClassVar[tuple[type[Precondition], ...]] = (FilesAtMost,)

    def least_risk(self, plan: Plan) -> Risk:
        return _least_risk(plan)

    async def plan(self, params: UndeleteParams, ports: Ports, plan_id: str) -> Plan:
        policy = ports.site.files_of(params.name)
        as_of = moment_of(params.at, ports.clock.now())
        facts = await ports.buckets.facts(policy.bucket)
        if facts.versioning is False:
            copy = f"Bring it back from a copy: `/dr files restore {policy.name}`."
            raise UserError(
                f"Bucket `{policy.bucket}` keeps no versions, so what was deleted there is gone. "
                f"{copy if policy.copy_bucket else 'Turn them on for what comes, and look for a copy elsewhere.'}"
            )
        source = FilesSource(name=policy.name, prefix=params.prefix, as_of=as_of)
        settled = params.model_copy(update={"at": as_of.isoformat()})
        plan = await _bring_back(self.name, source, params.replace, "", ports, plan_id)
        gone = removed_versions(facts, policy, policy.prefix + params.prefix, as_of, ports.clock.now())
        findings = (*plan.findings, *gone)
        return plan.model_copy(update={"params": settled.model_dump(mode="json"), "findings": findings})


async def _bring_back(
    action: str, source: FilesSource, replace: bool, manifest: str, ports: Ports, plan_id: str
) -> Plan:
    policy = ports.site.files_of(source.name)
    target = source.into or policy.bucket
    found = await ports.files.difference(source)
    if not found.missing and not (replace and found.changed):
        raise UserError(_nothing_to_do(source, target, found))
    step = brought_back(ports.site, source, found, replace=replace, manifest=manifest, job=job_name(plan_id, 1))
    stands = FilesAtMost(source=source, replace=replace, missing=found.missing, changed=found.changed)
    overwrites = replace and found.changed > 0
    return Plan(
        id=plan_id,
        action=action,
        summary=step.summary,
        risk=Risk.DESTRUCTIVE if overwrites else Risk.DISRUPTIVE,
        target=target,
        params={},
        locks=(Lock(key=f"files:{policy.name}"),),
        steps=(step,),
        preconditions=(stands,),
        made_at=ports.clock.now(),
        findings=tuple(_difference_findings(found, target, overwrites=overwrites, replace=replace)),
        observations=(
            Observation(name="as of", value=moment(found.state_of)),
            Observation(name="files then", value=str(found.wanted)),
            Observation(name="as they were", value=str(found.same)),
            Observation(name="missing", value=_with_examples(found, "missing", found.missing)),
            Observation(name="changed since", value=_with_examples(found, "changed", found.changed)),
            Observation(name="only there now, left alone", value=_with_examples(found, "later", found.later)),
        ),
        estimate=return_takes(source, found, replace=replace),
    )


def _least_risk(plan: Plan) -> Risk:
    """Putting back what is missing overwrites nothing."""
    overwrites = any(isinstance(step, BringBackFiles) and step.replace and step.changed for step in plan.steps)
    return Risk.DESTRUCTIVE if overwrites else Risk.DISRUPTIVE


def _nothing_to_do(source: FilesSource, target: str, found: FilesDifference) -> str:
    if found.wanted == 0:
        return f"There was nothing under `{source.prefix or '/'}` in {said(source)}. Look at the prefix and the moment."
    if found.changed:
        return (
            f"Nothing is missing in bucket `{target}`, but {counted(found.changed, 'file')} changed since. "
            "Add `--replace` to put the old versions on top; the present ones stay beneath."
        )
    return f"Bucket `{target}` has all {found.wanted} files of {said(source)} as they were. There is nothing to do."


def _difference_findings(found: FilesDifference, target: str, *, overwrites: bool, replace: bool) -> list[Finding]:
    findings = []
    if overwrites and found.versioned is not True:
        findings.append(
            _stop(
                "versions",
                f"Bucket `{target}` keeps no versions, or does not tell: {found.changed} files would be lost for good.",
                "Turn versioning on first, or leave out `--replace`.",
            )
        )
    if found.changed and not replace:
        findings.append(
            _warn(
                "changed files",
                f"{counted(found.changed, 'file')} changed since and will be left as it is.",
                "Add `--replace` to put the old versions on top.",
            )
        )
    return findings


def _with_examples(found: FilesDifference, what: str, count: int) -> str:
    examples = found.examples.get(what, ())
    return f"{count}, such as {names(examples[:2])}" if examples else str(count)


def _broken(copy: FilesCopy) -> Finding:
    return _warn("copies", f"Copy `{copy.manifest.id}` must not be used: {copy.problem}", "This plan makes a new one.")


def _warn(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, detail=detail, hint=hint)


def _stop(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.STOP, detail=detail, hint=hint)


ACTIONS = (Copy, Restore, Undelete)
