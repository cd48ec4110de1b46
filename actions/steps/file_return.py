"""The step that brings files back, made from what it would do now."""

from __future__ import annotations

from datetime import datetime, timedelta

from actions.buckets import BucketFacts, FilesDifference, FilesSource
from actions.contract import Finding, Verdict
from actions.site import FilesPolicy, Site
from actions.steps.files import BringBackFiles
from actions.steps.phrases import moment, span

COPY_RATE = 40_000_000  # bytes a second between two stores, for estimates
OWN_RATE = 400_000_000  # the same within one, where nothing leaves it


def brought_back(
    site: Site, source: FilesSource, found: FilesDifference, *, replace: bool, manifest: str, job: str
) -> BringBackFiles:
    """`manifest` is the key of the copy's manifest; empty where the versions of the bucket are the source."""
    policy = site.files_of(source.name)
    target = source.into or policy.bucket
    return BringBackFiles(
        job=job,
        source=source,
        replace=replace,
        prefix=policy.prefix + source.prefix,
        bucket=target,
        endpoint=site.endpoint_of(target),
        copy_bucket=policy.copy_bucket,
        copy_endpoint=site.endpoint_of(policy.copy_bucket),
        copy_manifest=manifest,
        missing=found.missing,
        missing_bytes=found.missing_bytes,
        changed=found.changed,
        changed_bytes=found.changed_bytes,
    )


def copying_takes(moved: int, *, files: int = 0, rate: int = COPY_RATE) -> timedelta:
    """How long it takes to move so many bytes and to touch so many files, roughly."""
    return timedelta(seconds=2 + moved // rate + files // 100)


def return_takes(source: FilesSource, found: FilesDifference, *, replace: bool) -> timedelta:
    """How long files come back, roughly: out of their own bucket they are copied within the store."""
    moved = found.missing_bytes + (found.changed_bytes if replace else 0)
    files = found.missing + (found.changed if replace else 0)
    return copying_takes(moved, files=files, rate=OWN_RATE if source.copy_id is None else COPY_RATE)


def removed_versions(
    facts: BucketFacts, policy: FilesPolicy, prefix: str, as_of: datetime, now: datetime
) -> list[Finding]:
    """Old versions that a rule of the bucket has removed since are not found missing: nobody knows of them any more."""
    rules = [
        (rule.deletes_versions_after, rule.name)
        for rule in facts.lifecycle or ()
        if rule.deletes_versions_after is not None
        and (prefix.startswith(rule.prefix) or rule.prefix.startswith(prefix))
    ]
    if not rules or as_of >= now - min(rules)[0]:
        return []
    kept, name = min(rules)
    return [
        Finding(
            check="old versions",
            verdict=Verdict.WARN,
            detail=f"Rule `{name}` of bucket `{policy.bucket}` removes old versions after {span(kept)}: what was "
            f"replaced or deleted before {moment(now - kept)} is gone, and this plan does not know of it.",
            hint="Choose a later moment"
            + (f", or take a copy: `/dr files restore {policy.name}`." if policy.copy_bucket else "."),
        )
    ]


def copy_manifest(policy: FilesPolicy, copy_id: str) -> str:
    """The key of a copy's manifest."""
    return f"{policy.copy_prefix}files/{policy.name}/copies/{copy_id}/manifest.json"
