"""What lies in the buckets of backups and is none: stored by a job that ended before the manifest was written."""

from __future__ import annotations

from actions.backup.catalogue import database_prefix
from actions.backup.uploads import Stray, strays
from actions.contract import Finding, Verdict
from actions.engines import engine_of
from actions.ports import Ports
from actions.steps import byhand
from actions.steps.phrases import moment, size


async def stray_findings(ports: Ports) -> list[Finding]:
    """One for each. Engines that keep a repository of their own sweep it themselves."""
    dumps = [(f"backups of {name}", each.bucket, database_prefix(each)) for name, each in ports.site.backups.items()]
    bases = [
        (f"base backups of {name}", bucket, prefix)
        for name, each in ports.site.physical.items()
        if (prefix := engine_of(each).leftovers(each)) is not None
        for bucket in each.base_buckets
    ]
    now = ports.clock.now()
    # Half a copy is brought to its end by the next base backup.
    halves = {
        (engine_of(each).leftovers(each), entry.manifest.id)
        for name, each in ports.site.physical.items()
        if each.copy_bucket
        for entry in await ports.physical.catalogue(name)
    }
    return [
        _finding(ports, check, stray)
        for check, bucket, prefix in sorted(dumps + bases)
        for stray in await strays(ports.objects, bucket, prefix, now=now)
        if (prefix, stray.backup) not in halves
    ]


def _finding(ports: Ports, check: str, stray: Stray) -> Finding:
    endpoint = ports.site.endpoint_of(stray.bucket)
    remove = byhand.aws(endpoint, "s3", "rm", "--recursive", f"s3://{stray.bucket}/{stray.folder}")
    return Finding(
        check=check,
        verdict=Verdict.WARN,
        detail=(
            f"`{stray.backup}` in `{stray.bucket}` has {size(stray.bytes)} and no manifest: its job ended at "
            f"{moment(stray.newest_at)}, before it was a backup, so nothing is restored from it"
        ),
        hint=f"Remove it, unless you want to look why: `{remove}`.",
    )
