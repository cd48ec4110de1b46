"""One base backup out of what each bucket holds of it: pure. Any bucket that has it whole will do for a restore."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from pydantic import AwareDatetime, Field

from actions.backup.physical import PhysicalEntry, PhysicalManifest, Proof
from actions.backup.pins import Pin
from actions.backup.verification import found_damaged
from actions.site import Frozen, PhysicalPolicy


class BaseVerification(Frozen):
    """The whole object was read, both hashes were right, and every file was what the server had listed; or, with a
    `problem`, they were not."""

    backup: str
    manifest_sha256: str
    verified_at: AwareDatetime
    problem: str = Field(default="", exclude_if=operator.not_)  # older records have none, and stay signed
    bucket: str = Field(default="", exclude_if=operator.not_)  # that was read; empty: the one it lies in
    renewed: bool = Field(default=False, exclude_if=operator.not_)  # not read here: copied anew after it was damaged


class Written(NamedTuple):
    """An object as it was written at one moment."""

    bucket: str
    key: str
    bytes: int
    at: datetime


class Verified(NamedTuple):
    """A verification as it was found, and the bucket it speaks of."""

    key: str
    bucket: str
    record: BaseVerification


@dataclass(frozen=True)
class BaseCopy:
    """What one bucket holds of a base backup. Without a `manifest` it is none: half of one, or a pin alone."""

    bucket: str
    digest: str = ""  # of the manifest
    manifest: PhysicalManifest | None = None
    refused: str = ""  # why the manifest must not be believed
    missing: str = ""  # which object is not there
    odd: str = ""  # which object cannot be what was stored
    verified: tuple[Verified, ...] = ()  # the newest for each bucket that one speaks of
    proven: Proof | None = None
    pin: Pin | None = None
    written: tuple[Written, ...] = ()  # everything that was listed


def joined(policy: PhysicalPolicy, backup: str, copies: Mapping[str, BaseCopy | None]) -> PhysicalEntry | None:
    """The entry of the catalogue; None when no bucket has its manifest. `copies`: of every bucket that answered."""
    there = {bucket: copy for bucket, copy in copies.items() if copy is not None and copy.manifest is not None}
    trusted = [copy for copy in there.values() if not copy.refused]
    first = next(iter(trusted or there.values()), None)
    if first is None or first.manifest is None:
        return None
    if not trusted:
        return PhysicalEntry(
            manifest=first.manifest, manifest_sha256=first.digest, problem=first.refused, trusted=False
        )
    damaged, checked = _read_through(copies, first.digest)
    # What is gone is not damaged any more: another bucket may give it anew.
    spoiled = {
        bucket: why
        for bucket, copy in there.items()
        if (why := copy.refused or copy.odd or ("" if copy.missing else damaged.get(bucket, "")))
    }
    lacking = [bucket for bucket in copies if bucket not in there or there[bucket].missing]
    whole = tuple(bucket for bucket in copies if bucket not in spoiled and bucket not in lacking)
    problem = None if whole else next(why for each in trusted if (why := each.missing or spoiled.get(each.bucket, "")))
    if len({copy.digest for copy in trusted}) > 1:
        both = " and ".join(f"`{copy.bucket}`" for copy in trusted)
        whole = ()
        problem = (
            f"Buckets {both} hold different manifests of base backup `{backup}`, each signed by a trusted key. Look "
            "which one is true, and remove the other; use another backup."
        )
    proof = max((copy.proven for copy in trusted if copy.proven), key=lambda proof: proof.proven_at, default=None)
    pins = {bucket: copy.pin for bucket, copy in copies.items() if copy is not None and copy.pin is not None}
    pin = max(pins.values(), key=lambda pin: pin.at, default=None)
    unpinned = [bucket for bucket in copies if pin is not None and pins.get(bucket) != pin]
    behind = {bucket for bucket in (*lacking, *unpinned) if bucket not in spoiled}
    return PhysicalEntry(
        manifest=first.manifest,
        manifest_sha256=first.digest,
        verified_at=checked,
        proven_at=proof.proven_at if proof and proof.problem is None and proof.backup == backup else None,
        pinned=pin.reason if pin else "",
        problem=problem,
        whole_in=whole,
        # Nothing can be copied of what no bucket has whole.
        behind=tuple(bucket for bucket in policy.base_buckets if bucket in behind and whole),
        spoiled=spoiled if len(policy.base_buckets) > 1 else {},
    )


def _read_through(copies: Mapping[str, BaseCopy | None], digest: str) -> tuple[dict[str, str], datetime | None]:
    """What complete readings have found: bucket -> damage, and when one was last found to be good. Each bucket may hold
    the newest record about any."""
    newest: dict[str, Verified] = {}
    for copy in copies.values():
        for found in copy.verified if copy is not None else ():
            if found.record.manifest_sha256 != digest:
                continue
            known = newest.get(found.bucket)
            if known is None or found.record.verified_at > known.record.verified_at:
                newest[found.bucket] = found
    damaged = {
        bucket: found_damaged(found.record.problem, found.record.verified_at, found.key)
        for bucket, found in newest.items()
        if found.record.problem
    }
    records = [found.record for found in newest.values()]
    good = [record.verified_at for record in records if not record.problem and not record.renewed]
    return damaged, max(good, default=None)
