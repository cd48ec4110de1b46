"""Every bucket of the plan, held against the plan."""

from __future__ import annotations

from typing import ClassVar

from actions.buckets import BucketFacts
from actions.contract import Finding, Query, Report, Verdict
from actions.errors import UNKNOWN_NAME, DrError, RefusedError
from actions.ports import Ports
from actions.site import Frozen
from actions.steps.phrases import counted, span
from actions.steps.postures import apart_findings, posture_findings
from actions.steps.replicas import Replica, replica, replica_findings, replica_words, replicated

UNSEEN = "cannot be seen"


class BucketsParams(Frozen):
    """One bucket of the plan file, or all."""

    bucket: str | None = None


class BucketState(Query[BucketsParams]):
    """One row per bucket: its settings; the findings say what is not as the plan has it."""

    name: ClassVar[str] = "status.buckets"
    summary: ClassVar[str] = "Hold the settings of every bucket against the plan"
    params = BucketsParams

    async def read(self, params: BucketsParams, ports: Ports) -> Report:
        if params.bucket is not None and params.bucket not in ports.site.buckets:
            known = ", ".join(f"`{name}`" for name in sorted(ports.site.buckets)) or "none"
            raise RefusedError(f"The plan file knows no bucket `{params.bucket}`. Known: {known}.", code=UNKNOWN_NAME)
        rows: list[tuple[str, ...]] = []
        findings: list[Finding] = []
        for name in sorted(ports.site.buckets) if params.bucket is None else [params.bucket]:
            try:
                facts = await ports.buckets.facts(name)
            except DrError as error:
                # One bucket that does not answer must not hide the others.
                findings.append(Finding(check=f"bucket {name}", verdict=Verdict.STOP, detail=str(error)))
                rows.append((name, *["no answer"] * 5))
                continue
            rows.append((name, *_row(facts)))
            findings += posture_findings(ports.site, ports.site.buckets[name], facts)
        copies: list[Replica] = []
        for name in replicated(ports.site):
            if params.bucket in (None, name):
                copies.append(await replica(ports, name, markers=True))
                findings += replica_findings(ports.site, copies[-1])
        if params.bucket is None:
            findings += apart_findings(ports.site)
        odd = [finding for finding in findings if finding.verdict is not Verdict.OK]
        worst_first = sorted(odd, key=lambda finding: finding.verdict is not Verdict.STOP)
        said = "as planned" if not odd else counted(len(odd), "finding")
        return Report(
            title=f"{counted(len(rows), 'bucket')}: {said}",
            lines=tuple(replica_words(copy) for copy in copies if not copy.problem),
            columns=("bucket", "versions", "Object Lock", "encryption", "lifecycle", "replicated to"),
            rows=tuple(rows),
            findings=tuple(worst_first),
        )


def _row(facts: BucketFacts) -> tuple[str, ...]:
    return (
        UNSEEN if facts.versioning is None else ("kept" if facts.versioning else "not kept"),
        _locked(facts),
        UNSEEN if facts.encryption is None else facts.encryption or "none by default",
        UNSEEN if facts.lifecycle is None else counted(len(facts.lifecycle), "rule"),
        UNSEEN if facts.replicates_to is None else ", ".join(facts.replicates_to) or "nowhere",
    )


def _locked(facts: BucketFacts) -> str:
    if facts.object_lock is None:
        return UNSEEN
    how_long = "" if facts.locked_for is None else f" {span(facts.locked_for)}"
    if facts.lockable and facts.object_lock == "off":
        return "allowed, no default"
    return f"{facts.object_lock}{how_long}"
