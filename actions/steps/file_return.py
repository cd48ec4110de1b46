"""The step that brings files back, made from what it would do now."""

from __future__ import annotations

from actions.buckets import FilesDifference, FilesSource
from actions.site import FilesPolicy, Site
from actions.steps.files import BringBackFiles


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
        endpoint=endpoint_of(site, target),
        copy_bucket=policy.copy_bucket,
        copy_endpoint=endpoint_of(site, policy.copy_bucket),
        copy_manifest=manifest,
        missing=found.missing,
        missing_bytes=found.missing_bytes,
        changed=found.changed,
        changed_bytes=found.changed_bytes,
    )


def copy_manifest(policy: FilesPolicy, copy_id: str) -> str:
    """The key of a copy's manifest."""
    return f"{policy.copy_prefix}files/{policy.name}/copies/{copy_id}/manifest.json"


def endpoint_of(site: Site, bucket: str) -> str | None:
    """Where the bucket is, for commands by hand; None for the provider's own."""
    known = site.buckets.get(bucket)
    return None if known is None else known.endpoint
