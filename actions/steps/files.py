"""Steps that copy files into another region and bring them back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from datetime import UTC
from typing import Any, ClassVar, Literal

from actions.buckets import BringBack, CopiesExpiry, FilesCopyRequest, FilesDifference, FilesSource
from actions.contract import Precondition, Probe
from actions.errors import PermanentError, VerificationError
from actions.ports import JobKind, JobPhase, JobSpec, JobState, Ports, no_progress
from actions.steps import byhand
from actions.steps.heavy import LEEWAY, HeavyStep, failure
from actions.steps.moments import exact
from actions.steps.phrases import counted, names, size


class CopyFiles(HeavyStep):
    """A copy in the catalogue, compared with its source, under an id that the plan chose."""

    interruptible: ClassVar[bool] = True
    kind: Literal["copy_files"] = "copy_files"
    name: str
    copy_id: str
    bucket: str
    prefix: str
    copy_bucket: str
    endpoint: str | None
    copy_endpoint: str | None
    requested_by: str

    @property
    def summary(self) -> str:
        what = f"`{self.prefix}` of bucket `{self.bucket}`" if self.prefix else f"bucket `{self.bucket}`"
        return f"Copy {what} into `{self.copy_bucket}` as `{self.copy_id}` and compare both"

    @property
    def before(self) -> str:
        return f"no copy `{self.copy_id}`"

    @property
    def after(self) -> str:
        return f"copy `{self.copy_id}` in the catalogue, signed; earlier copies as they were"

    def by_hand(self) -> tuple[str, ...]:
        source, target = f"s3://{self.bucket}/{self.prefix}", f"s3://{self.copy_bucket}/by-hand/{self.copy_id}/"
        return (
            byhand.aws(self.endpoint, "s3", "sync", source, f"./{self.copy_id}/"),
            byhand.aws(self.copy_endpoint, "s3", "sync", f"./{self.copy_id}/", target),
        )

    @property
    def job_kind(self) -> JobKind:
        return JobKind.FILES_COPY

    def request(self) -> Mapping[str, Any]:
        asked = FilesCopyRequest(id=self.copy_id, name=self.name, requested_by=self.requested_by)
        return asked.model_dump(mode="json")

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the catalogue tells all
        # The manifest is written last, after the comparison.
        return Probe.DONE if await _problem(ports, self.name, self.copy_id) == "" else Probe.TODO

    async def verify(self, ports: Ports) -> None:
        problem = await _problem(ports, self.name, self.copy_id)
        if problem != "":
            raise VerificationError(problem or f"There is no copy `{self.copy_id}` in `{self.copy_bucket}`. Try again.")

    async def undo(self, ports: Ports) -> None:
        """The source was not changed; the copy is kept until its time is over."""


class ExpireCopies(HeavyStep):
    """The copies older than the plan keeps them, deleted with what only they need."""

    kind: Literal["expire_copies"] = "expire_copies"
    name: str
    copy_bucket: str
    copy_endpoint: str | None
    folder: str
    copies: tuple[str, ...]
    days: int

    @property
    def summary(self) -> str:
        if not self.copies:
            return f"Delete what no copy in `{self.copy_bucket}` needs any more"
        return f"Delete {names(self.copies)} from `{self.copy_bucket}`, older than {self.days} d"

    @property
    def before(self) -> str:
        return (
            f"{counted(len(self.copies), 'copy') if len(self.copies) == 1 else f'{len(self.copies)} copies'} over time"
        )

    @property
    def after(self) -> str:
        return "gone, with the objects that no other copy lists; the newest copy always stays"

    def by_hand(self) -> tuple[str, ...]:
        return tuple(
            byhand.aws(self.copy_endpoint, "s3", "rm", "--recursive", f"s3://{self.copy_bucket}/{self.folder}{copy}/")
            for copy in self.copies
        ) or ("# nothing: what no copy lists is harmless, and the next run deletes it",)

    @property
    def job_kind(self) -> JobKind:
        return JobKind.FILES_EXPIRE

    def request(self) -> Mapping[str, Any]:
        return CopiesExpiry(name=self.name, copies=self.copies).model_dump(mode="json")

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:
        left = {copy.manifest.id for copy in await ports.files.copies(self.name)} & set(self.copies)
        ended = job is not None and job.phase is JobPhase.SUCCEEDED
        return Probe.DONE if not left and (ended or not (await ports.files.expiry(self.name)).objects) else Probe.TODO

    async def verify(self, ports: Ports) -> None:
        left = {copy.manifest.id for copy in await ports.files.copies(self.name)} & set(self.copies)
        if left:
            raise VerificationError(f"{names(sorted(left))} is still in `{self.copy_bucket}`. Look at its Object Lock.")

    async def undo(self, ports: Ports) -> None:
        """How long a copy is kept was signed with the plan file; what was over its time does not come back."""


class BringBackFiles(HeavyStep):
    """Files as they were, in the bucket again; nothing is deleted, what is replaced stays as an older version."""

    kind: Literal["bring_back_files"] = "bring_back_files"
    source: FilesSource
    replace: bool
    prefix: str  # in the bucket, that of the policy included
    bucket: str
    endpoint: str | None
    copy_bucket: str
    copy_endpoint: str | None
    copy_manifest: str  # key of the copy's manifest; empty where the versions of the bucket are the source
    missing: int
    missing_bytes: int
    changed: int
    changed_bytes: int

    @property
    def summary(self) -> str:
        where = f"`{self.prefix}` of bucket `{self.bucket}`" if self.prefix else f"bucket `{self.bucket}`"
        files = f"{counted(self.missing, 'missing file')} ({size(self.missing_bytes)})"
        if self.replace:
            files += f" and {counted(self.changed, 'changed file')} ({size(self.changed_bytes)})"
        return f"Bring back {files} in {where}, as in {said(self.source)}"

    @property
    def before(self) -> str:
        return f"{self.missing} missing, {self.changed} changed"

    @property
    def after(self) -> str:
        kept = (
            "changed files replaced, their present versions kept under the old ones"
            if self.replace
            else ("changed files left as they are")
        )
        return f"none missing; {kept}; nothing deleted"

    def by_hand(self) -> tuple[str, ...]:
        return self._from_copy() if self.copy_manifest else self._from_versions()

    def _from_copy(self) -> tuple[str, ...]:
        folder = f"s3://{self.copy_bucket}/{self.copy_manifest.rpartition('/')[0]}/"
        fetch = byhand.aws(self.copy_endpoint, "s3", "cp", f"s3://{self.copy_bucket}/")
        store = byhand.aws(self.endpoint, "s3", "cp", "-", f"s3://{self.bucket}/")
        entries = f".body.entries[]|select(.key|startswith({json.dumps(self.prefix)}))|[.stored,.key]|@tsv"
        each = f'{fetch}"$stored" - | {store}"$key"'
        return (
            byhand.aws(self.copy_endpoint, "s3", "sync", folder, "./copy/"),
            f'for part in copy/part-*; do zstd -dcq "$part" | jq -r {shlex.quote(entries)}; done > files.tsv',
            f"while IFS=$'\\t' read -r stored key; do {each}; done < files.tsv",
        )

    def _from_versions(self) -> tuple[str, ...]:
        moment = "" if self.source.as_of is None else self.source.as_of.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
        where = ("--bucket", self.bucket, "--prefix", self.prefix, "--output", "text")
        listing = ("s3api", "list-object-versions", *where, "--query")
        hidden = f"DeleteMarkers[?IsLatest && LastModified>'{moment}'].[Key]"
        old = f"Versions[?LastModified<='{moment}'].[Key,VersionId,LastModified]"
        on_top = byhand.aws(self.endpoint, "s3api", "copy-object", "--bucket", self.bucket)
        newest = "sort -t $'\\t' -k1,1 -k3,3r | awk -F '\\t' '!seen[$1]++' > versions.tsv"
        source = f'{shlex.quote(self.bucket)}/"$key?versionId=$version"'
        copied = f'{on_top} --key "$key" --copy-source {source}'
        wanted: tuple[str, ...] = (
            "# take out of versions.tsv what is as it was, and what was deleted before that moment",
            f"while IFS=$'\\t' read -r key version at; do {copied}; done < versions.tsv",
        )
        if not self.replace:
            wanted = (
                f"{byhand.aws(self.endpoint, *listing, hidden)} > hidden.tsv",
                "awk -F '\\t' 'NR == FNR {hidden[$1]; next} $1 in hidden' hidden.tsv versions.tsv > back.tsv",
                "# take out of back.tsv what was deleted before that moment already",
                f"while IFS=$'\\t' read -r key version at; do {copied}; done < back.tsv",
            )
        return (f"{byhand.aws(self.endpoint, *listing, old)} | {newest}", *wanted)

    @property
    def job_kind(self) -> JobKind:
        return JobKind.FILES_BRING_BACK

    def request(self) -> Mapping[str, Any]:
        return self._asked.model_dump(mode="json")

    @property
    def _asked(self) -> BringBack:
        return BringBack(source=self.source, replace=self.replace, job=self.job)

    async def effect(self, ports: Ports, job: JobState | None) -> Probe:  # noqa: ARG002 - the bucket tells all
        return Probe.TODO if self._left(await ports.files.difference(self.source)) else Probe.DONE

    async def verify(self, ports: Ports) -> None:
        left = self._left(await ports.files.difference(self.source))
        if left:
            raise VerificationError(f"{left} in bucket `{self.bucket}`. Run it again; nothing was lost.")

    async def undo(self, ports: Ports) -> None:
        """What was replaced lies on top again. What was missing and has come back stays: it is in nobody's way."""
        if not self.replace:
            raise PermanentError(f"{self.summary}: what came back was missing, and nothing is deleted.")
        await self.stop(ports)
        job = self._undo_job
        state = await ports.executor.find(job)
        if state is not None and state.phase is not JobPhase.RUNNING:
            await ports.executor.forget(job)  # of a try before: what it did is found done
        request = self._asked.model_copy(update={"undo": True}).model_dump(mode="json")
        await ports.executor.start(
            JobSpec(name=job, kind=self.job_kind, request=request, timeout=self.timeout - LEEWAY)
        )
        ended = await ports.executor.wait(job, no_progress)
        if ended.phase is not JobPhase.SUCCEEDED:
            raise failure(self, ended)

    @property
    def _undo_job(self) -> str:
        return f"{self.job}-undo"

    def undo_by_hand(self) -> tuple[str, ...]:
        if not self.replace:
            return ()
        where = ("--bucket", self.bucket, "--prefix", self.prefix, "--output", "text", "--query")
        listing = byhand.aws(
            self.endpoint, "s3api", "list-object-versions", *where, "Versions[].[Key,VersionId,LastModified]"
        )
        on_top = byhand.aws(self.endpoint, "s3api", "copy-object", "--bucket", self.bucket)
        source = f'{shlex.quote(self.bucket)}/"$key?versionId=$version"'
        copied = f'{on_top} --key "$key" --copy-source {source}'
        return (
            f"{listing} | sort -t $'\\t' -k1,1 -k3,3r | awk -F '\\t' 'seen[$1]++ == 1' > beneath.tsv",
            f"# keep the keys whose newest version has `drbot-restored` ending in .{self.job} (s3api head-object)",
            f"while IFS=$'\\t' read -r key version at; do {copied}; done < beneath.tsv",
        )

    async def undone(self, ports: Ports) -> None:
        state = await ports.executor.find(self._undo_job)
        if state is None or state.phase is not JobPhase.SUCCEEDED:
            raise VerificationError(f"{self.summary}: it is not known to be put back. Look at job `{self._undo_job}`.")

    def _left(self, found: FilesDifference) -> str:
        if found.missing:
            return f"{counted(found.missing, 'file')} still missing, such as {names(found.examples['missing'][:1])},"
        if self.replace and found.changed:
            return f"{counted(found.changed, 'file')} still changed, such as {names(found.examples['changed'][:1])},"
        return ""


class CopyIs(Precondition):
    """The copy is there, byte for byte the signed manifest, and still checks."""

    kind: Literal["copy_is"] = "copy_is"
    name: str
    copy_id: str
    manifest_sha256: str

    @property
    def summary(self) -> str:
        return f"Copy `{self.copy_id}` still verifies, manifest SHA-256 {self.manifest_sha256[:12]}"

    async def violation(self, ports: Ports) -> str | None:
        found = [copy for copy in await ports.files.copies(self.name) if copy.manifest.id == self.copy_id]
        if not found:
            return f"Copy `{self.copy_id}` is no longer in the catalogue."
        if found[0].problem is not None:
            return f"Copy `{self.copy_id}` must no longer be used: {found[0].problem}"
        if found[0].manifest_sha256 != self.manifest_sha256:
            return f"The manifest of `{self.copy_id}` was changed since it was signed for."
        return None


class FilesAtMost(Precondition):
    """No more is written than was signed for."""

    spent: ClassVar[bool] = True
    kind: Literal["files_at_most"] = "files_at_most"
    source: FilesSource
    replace: bool
    missing: int
    changed: int

    @property
    def summary(self) -> str:
        most = f"At most {counted(self.missing, 'file')} missing"
        return f"{most}, and at most {self.changed} changed" if self.replace else most

    async def violation(self, ports: Ports) -> str | None:
        found = await ports.files.difference(self.source)
        if found.missing > self.missing:
            return f"{found.missing} files are missing now, signed was at most {self.missing}."
        if self.replace and found.changed > self.changed:
            return f"{found.changed} files would be replaced now, signed was at most {self.changed}."
        return None


def said(source: FilesSource) -> str:
    """What the files come from, for people."""
    if source.copy_id is not None:
        return f"copy `{source.copy_id}`"
    return f"the bucket's own versions of {exact(source.as_of)}" if source.as_of is not None else "nothing"


async def _problem(ports: Ports, name: str, copy: str) -> str | None:
    """Empty when the copy is there and good, None when there is none, else what is wrong with it."""
    for found in await ports.files.copies(name):
        if found.manifest.id == copy:
            return found.problem or ""
    return None
