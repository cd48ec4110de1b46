"""A dump loaded beside production and compared with its manifest, in the names of one plan."""

from __future__ import annotations

from actions.contract import Step
from actions.site import DatabaseRef
from actions.steps.copies import CompareCopy, LoadDump
from actions.steps.naming import job_name, scratch_mark
from actions.steps.scene import Scene


def loaded(scene: Scene, into: DatabaseRef, plan_id: str, number: int) -> tuple[Step, Step]:
    """The load as job `number` of the plan, and the comparison."""
    stored, database, entry = scene.entry.manifest.stored, scene.database, scene.entry
    mark = scratch_mark(plan_id)
    load = LoadDump(
        job=job_name(plan_id, number),
        database=scene.key,
        backup=entry.manifest.id,
        into=into,
        owner=database.owner,
        mark=mark,
        jobs=database.restore_jobs,
        bucket=stored.bucket,
        endpoint=scene.endpoint,
        key=stored.key,
        sha256=stored.sha256,
        invariants=database.invariants,
        database_bytes=entry.manifest.database_bytes,
    )
    compare = CompareCopy(
        database=scene.key,
        backup=entry.manifest.id,
        manifest_sha256=entry.manifest_sha256,
        into=into,
        mark=mark,
        invariants=database.invariants,
        tables=len(entry.manifest.fingerprint.rows),
    )
    return load, compare
