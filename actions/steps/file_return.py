"""The step that brings files back, made from what it would do now."""

from __future__ import annotations

from datetime import timedelta

from actions.buckets import FilesDifference, FilesSource
from actions.site import FilesPolicy, Site
from actions.steps.files import BringBackFiles

COPY_RATE = 40_000_000  # bytes a second between two stores, for estimates


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


def copying_takes(moved: int, *, files: int = 0) -> timedelta:
    """How long it takes to move so many bytes between two stores and to touch so many files, roughly."""
    return timedelta(seconds=2 + moved // COPY_RATE + files // 100)


def return_takes(source: FilesSource, found: FilesDifference, *, replace: bool) -> timedelta:
    """How long files come back, roughly: out of their own bucket no byte has to be moved."""
    moved = found.missing_bytes + (found.changed_bytes if replace else 0)
    files = found.missing + (found.changed if replace else 0)
    return copying_takes(moved if source.copy_id is not None else 0, files=files)


def copy_manifest(policy: FilesPolicy, copy_id: str) -> str:
    """The key of a copy's manifest."""
    return f"{policy.copy_prefix}files/{policy.name}/copies/{copy_id}/manifest.json"
