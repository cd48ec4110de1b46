"""A bucket as it is held against the bucket as the plan wants it. What cannot be seen is said, never taken as fine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta

from actions.buckets import BucketFacts, LifecycleRule, Trial
from actions.contract import Finding, Verdict
from actions.engines import engine_of
from actions.site import Bucket, LockMode, PhysicalPolicy, Site
from actions.steps import byhand
from actions.steps.phrases import names, span

WITNESS = "witness"
OLD_VERSIONS = timedelta(days=30)
"""How long a rule that we propose leaves what the bot has deleted, for people who find out that it was needed."""
OLD_PIECES = timedelta(days=1)
"""The same of pieces of WAL: closed segments have all of it."""


def posture_findings(site: Site, bucket: Bucket, facts: BucketFacts) -> list[Finding]:
    """One finding for each thing that was looked at."""
    return [
        *_versioning(bucket, facts),
        *_lock(site, bucket, facts),
        *_encryption(bucket, facts),
        *_lifecycle(bucket, facts),
        *_old_versions(site, bucket, facts),
        *_replication(bucket, facts),
    ]


def trial_findings(bucket: str, trials: Sequence[Trial]) -> list[Finding]:
    """What was tried on a bucket."""
    found = [
        _stop(
            f"bucket {bucket}",
            f"`{bucket}` does not {trial.what}: {trial.problem}.",
            "Backups cannot rest on it. Look at the store's version and at its settings for checksums.",
        )
        for trial in trials
        if trial.problem
    ]
    return found or [_ok(f"bucket {bucket}", f"`{bucket}` does {', '.join(trial.what for trial in trials)}")]


def apart_findings(site: Site) -> list[Finding]:
    """Copies that a plan keeps for the loss of a region, in the region they are kept for."""
    pairs = [
        (policy.bucket, policy.copy_bucket, f"copy of `{policy.component}`")
        for policy in site.files.values()
        if policy.copy_bucket
    ]
    pairs += [
        (policy.wal_buckets[0], policy.wal_buckets[1], f"WAL of server `{policy.server}`")
        for policy in site.physical.values()
        if len(policy.wal_buckets) == 2
    ]
    pairs += [
        (policy.bucket, policy.copy_bucket, f"base backups of server `{policy.server}`")
        for policy in site.physical.values()
        if policy.copy_bucket
    ]
    together = [
        _warn(
            what,
            f"The {what} is in `{first}` and `{second}`, which are in one region (`{site.buckets[first].region}`) "
            "of one store: both are lost together.",
            "Name a bucket of another region in the plan file.",
        )
        for first, second, what in pairs
        if _place(site, first) == _place(site, second)
    ]
    together += [
        _warn(
            what,
            f"The {what} is in `{first}` and `{second}`, of different regions by name and at one address "
            f"(`{site.buckets[first].endpoint}`): if that is one store, both are lost together.",
            "Name a bucket of a store in another place, or see that the provider keeps the two apart.",
        )
        for first, second, what in pairs
        if _place(site, first) != _place(site, second) and _at_one_address(site, first, second)
    ]
    alone = [(policy, why) for policy in site.physical.values() if (why := left_behind(site, policy))]
    return together + [_stop(f"base backups of {policy.server}", why, moved(policy)) for policy, why in alone]


def left_behind(site: Site, policy: PhysicalPolicy) -> str:
    """Why nothing could be made of the second copy of the WAL once the first one's region is lost: the base backups are
    lost with it. Empty where they are not."""
    if not engine_of(policy).archived_by_us or len(policy.wal_buckets) != 2:
        return ""
    near, far = policy.wal_buckets
    if _place(site, near) == _place(site, far):
        return ""
    if any(_place(site, bucket) != _place(site, near) for bucket in policy.base_buckets):
        return ""
    return (
        f"The base backups of `{policy.server}` are in {names(policy.base_buckets)} alone, in the region of `{near}`: "
        f"lost with it, they leave WAL in `{far}` that can be replayed on nothing."
    )


def apart(site: Site, policy: PhysicalPolicy) -> bool:
    """Whether the WAL is in two buckets that no one place holds: of different regions, or of different stores. Two
    regions at one address of a store of one's own are names, so nothing is promised of them."""
    if len(policy.wal_buckets) != 2:
        return False
    near, far = policy.wal_buckets
    return _place(site, near) != _place(site, far) and not _at_one_address(site, near, far)


def moved(policy: PhysicalPolicy) -> str:
    """What to do about base backups that are left behind."""
    return (
        f"Name `{policy.wal_buckets[-1]}` as the second store of `base` and `incremental` in the plan file, and take a "
        f"base backup at once, which copies those before as well: `/dr-backup base {policy.server}`."
    )


def _place(site: Site, bucket: str) -> tuple[str | None, str | None]:
    """What is lost together: a region of a store. Its name alone says nothing: two stores may use the same one."""
    return site.buckets[bucket].region, site.buckets[bucket].endpoint


def _at_one_address(site: Site, first: str, second: str) -> bool:
    """AWS, which has no address in the plan file, has one for each region."""
    endpoint = site.buckets[first].endpoint
    return bool(endpoint) and endpoint == site.buckets[second].endpoint


def _versioning(bucket: Bucket, facts: BucketFacts) -> Iterator[Finding]:
    check, wanted = f"versioning of {bucket.name}", bucket.posture.versioning
    if facts.versioning is None:
        if wanted:
            yield _unseen(check, bucket.name, facts, "versioning")
    elif wanted and not facts.versioning:
        yield _stop(
            check,
            f"Bucket `{bucket.name}` keeps no versions, the plan says it does: what is overwritten or deleted is gone.",
            f"`aws s3api put-bucket-versioning --bucket {bucket.name} "
            "--versioning-configuration Status=Enabled`, or correct the plan file.",
        )
    else:
        yield _ok(check, "on" if facts.versioning else "off, as the plan has it")


def _lock(site: Site, bucket: Bucket, facts: BucketFacts) -> Iterator[Finding]:
    check, wanted = f"Object Lock of {bucket.name}", bucket.posture.object_lock
    pieces = _takes_pieces(site, bucket)
    if facts.object_lock is None or facts.lockable is None:
        if wanted is not LockMode.OFF or pieces:
            yield _unseen(check, bucket.name, facts, "object lock")
    elif pieces and facts.object_lock is not LockMode.OFF:
        yield _stop(
            check,
            f"Bucket `{bucket.name}` locks every object, and gets a piece of WAL every few seconds.",
            "Take the default retention off, or name another bucket as `open_store`.",
        )
    elif wanted is LockMode.OFF:
        yield from _lock_time(check, bucket, facts)
    elif bucket.posture.purpose == WITNESS:
        # A checkpoint brings its own lock, so the bucket only has to allow one.
        if facts.lockable:
            yield _ok(check, "on; every checkpoint brings its own lock")
        else:
            yield _stop(check, f"Bucket `{bucket.name}` has no Object Lock.", "Make a new bucket with Object Lock on.")
    elif facts.object_lock not in (wanted, LockMode.COMPLIANCE):
        yield _stop(
            check,
            f"Bucket `{bucket.name}` {_locks(facts.object_lock)}, the plan says `{wanted}`: whoever has its keys can "
            "delete what is in it.",
            "Give the bucket a default retention; a bucket made without Object Lock must be made anew.",
        )
    else:
        yield from _lock_time(check, bucket, facts)


def _takes_pieces(site: Site, bucket: Bucket) -> bool:
    """Whether what is written of an open segment of WAL goes here, every few seconds, and goes again."""
    return any(policy.open_bucket == bucket.name for policy in site.physical.values())


def _lock_time(check: str, bucket: Bucket, facts: BucketFacts) -> Iterator[Finding]:
    """The default retention against what the plan says, or else against the longest that it keeps anything here."""
    posture, locked = bucket.posture, facts.locked_for
    kept = sorted(posture.kept.items(), key=lambda item: item[1])
    longest = kept[-1][1] if kept else None
    wanted = posture.locks_for or longest
    said = "wants" if posture.locks_for else "keeps nothing there for longer than"
    key = "`object_lock` and " if posture.object_lock is LockMode.OFF else ""
    meant = (
        "" if locked is None or posture.locks_for else f", or say {key}`object_lock_for: {locked.days}d` in the plan"
    )
    if facts.object_lock is LockMode.OFF or locked is None:
        yield _ok(check, "off" if facts.object_lock is LockMode.OFF else f"{facts.object_lock}")
    elif wanted is not None and locked < wanted and posture.object_lock is not LockMode.OFF:
        left = [f"{what} ({span(time)})" for what, time in kept if time > locked]
        yield _warn(
            check,
            f"Bucket `{bucket.name}` locks what is stored for {span(locked)}, the plan "
            f"{'wants' if posture.locks_for else 'keeps things for'} {span(wanted)}: after {span(locked)} whoever has "
            f"its keys can delete {', '.join(left) or 'it'}.",
            f"Set the default retention to {wanted.days} days, for what is stored from then on{meant}.",
        )
    elif wanted is not None and locked > wanted:
        yield _warn(
            check,
            f"Bucket `{bucket.name}` locks what is stored for {span(locked)}, the plan {said} {span(wanted)}: what "
            f"expiry deletes is hidden and takes its room for {span(locked - wanted)} more; nothing frees it before.",
            f"Set the default retention to {wanted.days} days{meant}.",
        )
    else:
        earlier = [f"{what} ({span(time)})" for what, time in kept if time < locked]
        also = f"; the plan lets go earlier: {', '.join(earlier)}" if earlier else ""
        yield _ok(check, f"{facts.object_lock}, for {span(locked)}{also}")


def _locks(mode: LockMode) -> str:
    return "locks nothing by default" if mode is LockMode.OFF else f"locks new objects by default as `{mode}`"


def _encryption(bucket: Bucket, facts: BucketFacts) -> Iterator[Finding]:
    check, wanted = f"encryption of {bucket.name}", bucket.posture.encryption
    if not wanted:
        return
    if facts.encryption is None:
        # The bot asks for it with every object, and the trials see whether it is given.
        yield _unseen(
            check, bucket.name, facts, "encryption", harm="Whether it is given is seen by `/dr doctor` alone."
        )
    elif facts.encryption != wanted:
        now = f"encrypts with `{facts.encryption}`" if facts.encryption else "encrypts nothing"
        yield _warn(
            check,
            f"Bucket `{bucket.name}` {now} by default, the plan says `{wanted}`. The bot asks for it with "
            "every object; what others store there gets the default.",
            "Set the bucket's default encryption, or correct the plan file.",
        )
    else:
        yield _ok(check, wanted)


def _lifecycle(bucket: Bucket, facts: BucketFacts) -> Iterator[Finding]:
    check, posture = f"lifecycle of {bucket.name}", bucket.posture
    if not posture.used and posture.keep_versions is None:
        return
    if facts.lifecycle is None:
        yield _unseen(check, bucket.name, facts, "lifecycle", harm="A rule there may delete what a restore needs.")
        return
    found = [finding for rule in facts.lifecycle for finding in _rule(check, bucket, rule)]
    yield from found
    if posture.keep_versions is not None and not found:
        how = [rule.deletes_versions_after for rule in facts.lifecycle if rule.deletes_versions_after is not None]
        yield _ok(check, f"old versions stay {span(min(how)) if how else 'until a rule removes them'}")
    elif not found:
        yield _ok(check, "no rule deletes what the bot needs")


def _rule(check: str, bucket: Bucket, rule: LifecycleRule) -> Iterator[Finding]:
    posture = bucket.posture
    some = " some of" if rule.narrowed else ""
    touched = [used for used in posture.used if used.startswith(rule.prefix) or rule.prefix.startswith(used)]
    if rule.deletes_after is not None and (touched or posture.keep_versions is not None):
        where = names(touched) if touched and any(touched) else f"bucket `{bucket.name}`"
        yield _stop(
            check,
            f"Rule `{rule.name}` of bucket `{bucket.name}` deletes{some} what is under `{rule.prefix or '/'}` "
            f"{_age(rule.deletes_after)}: by age alone, also what a backup in {where} still needs.",
            "Take the rule off. The bot deletes by what needs what, when the plan's time is over.",
        )
    if rule.archives_after is not None and touched:
        yield _warn(
            check,
            f"Rule `{rule.name}` of bucket `{bucket.name}` moves{some} what is under `{rule.prefix or '/'}` into an "
            f"archive {_age(rule.archives_after)}: reading it takes hours.",
            "Take the rule off, or keep it from what a restore within the RTO needs.",
        )
    kept = rule.deletes_versions_after
    if posture.keep_versions is not None and kept is not None and kept < posture.keep_versions:
        yield _stop(
            check,
            f"Rule `{rule.name}` of bucket `{bucket.name}` deletes{some} old versions {_age(kept)}, the plan keeps "
            f"them for {span(posture.keep_versions)}.",
            f"Set `NoncurrentDays` of the rule to at least {posture.keep_versions.days}.",
        )


def _old_versions(site: Site, bucket: Bucket, facts: BucketFacts) -> Iterator[Finding]:
    """What is deleted in a bucket with versions is hidden: a rule has to let it go, or it stays for ever."""
    posture, pieces = bucket.posture, _takes_pieces(site, bucket)
    deletes = posture.kept or pieces or posture.keep_versions is not None
    if not facts.versioning or facts.lifecycle is None or not deletes or posture.keep_versions == timedelta.max:
        return
    frees = [rule for rule in facts.lifecycle if rule.deletes_versions_after is not None and not rule.narrowed]
    prefixes = posture.used if posture.keep_versions is None else ("",)
    left = [each for each in prefixes if not any(each.startswith(rule.prefix) for rule in frees)]
    check = f"old versions of {bucket.name}"
    if not left:
        yield _ok(check, f"go {', '.join(_age(rule.deletes_versions_after or timedelta(0)) for rule in frees)}")
        return
    where = "" if left == [""] else f" under {names(left)}"
    harm = "all WAL once more, in pieces of seconds" if pieces and not posture.kept else "it grows for ever"
    yield _warn(
        check,
        f"Bucket `{bucket.name}` keeps versions, and no rule of its lifecycle removes old ones{where}: what was "
        f"deleted or replaced stays stored for good ({harm}).",
        _proposed(bucket, facts, left, OLD_PIECES if pieces and not posture.kept else OLD_VERSIONS),
    )


def _proposed(bucket: Bucket, facts: BucketFacts, prefixes: Sequence[str], after: timedelta) -> str:
    """The rule that would do it. A lifecycle is set as a whole, so a command is given where there is none yet."""
    days = max(after, bucket.posture.keep_versions or after).days
    rules = [
        {
            "ID": f"drbot-old-versions-{number}",
            "Status": "Enabled",
            "Filter": {"Prefix": prefix},
            "NoncurrentVersionExpiration": {"NoncurrentDays": days},
            "Expiration": {"ExpiredObjectDeleteMarker": True},
        }
        for number, prefix in enumerate(prefixes, 1)
    ]
    put = ("s3api", "put-bucket-lifecycle-configuration", "--bucket", bucket.name, "--lifecycle-configuration")
    if not facts.lifecycle:
        return f"`{byhand.aws(bucket.endpoint, *put, json.dumps({'Rules': rules}))}`"
    return (
        f"Add to the rules that it has: `{json.dumps(rules)[1:-1]}`. Keep the others: `put-bucket-lifecycle-"
        "configuration` replaces them all."
    )


def _age(after: timedelta) -> str:
    return f"after {after.days} d" if after else "at once"


def _replication(bucket: Bucket, facts: BucketFacts) -> Iterator[Finding]:
    check, wanted = f"replication of {bucket.name}", bucket.posture.replicates_to
    if not wanted:
        return
    if facts.replicates_to is None:
        yield _unseen(check, bucket.name, facts, "replication")
    elif wanted not in facts.replicates_to:
        to = names(facts.replicates_to) or "nowhere"
        yield _stop(
            check,
            f"Bucket `{bucket.name}` is replicated {to if to == 'nowhere' else f'to {to}'}, the plan says to "
            f"`{wanted}`.",
            "Set up the replication, or correct the plan file. What was there before it needs a batch job.",
        )
    else:
        deletes = "with" if facts.replicates_deletes else "without"
        yield _ok(check, f"to `{wanted}`, {deletes} delete markers")


def _unseen(check: str, bucket: str, facts: BucketFacts, setting: str, *, harm: str = "") -> Finding:
    why = facts.unseen.get(setting, "the store does not tell")
    detail = f"The {setting} of bucket `{bucket}` cannot be seen: {why}. {harm}".strip()
    return _warn(check, detail, "Look at it in the store's own console, or give the bot's key the right to read it.")


def _ok(check: str, detail: str) -> Finding:
    return Finding(check=check, verdict=Verdict.OK, detail=detail)


def _warn(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, detail=detail, hint=hint)


def _stop(check: str, detail: str, hint: str) -> Finding:
    return Finding(check=check, verdict=Verdict.STOP, detail=detail, hint=hint)
