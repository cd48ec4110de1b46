"""What an archiver says of itself: signed, in the bucket, every few seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AwareDatetime

from actions.backup.physical import BackupKind, Lsn, PhysicalEntry
from actions.backup.signing import Signed
from actions.backup.wal_source import AlarmKind, SlotFacts
from actions.errors import VerificationError
from actions.ports import ObjectStore
from actions.site import Frozen, PhysicalPolicy

STALE = timedelta(seconds=60)
"""An archiver that has said nothing for this long is not at work."""


class WalAlarm(Frozen):
    """One thing that is wrong, in a sentence with the next thing to do."""

    kind: AlarmKind
    text: str
    since: AwareDatetime


class Durable(Frozen):
    """How much of the WAL one bucket holds without a hole."""

    lsn: str = ""  # up to here
    at: datetime | None = None  # every commit until this moment, by the server's clock, lies before `lsn`
    waiting: int = 0  # closed segments it lacks
    problem: str = ""  # why the last attempt failed


class BaseWanted(Frozen):
    """WAL was lost: what comes after can be reached only from a new full base backup."""

    after_lsn: str  # such a backup begins here or later
    since: AwareDatetime
    reason: str
    timeline_id: int = 0

    def answered_by(self, entries: Sequence[PhysicalEntry], system_id: str) -> bool:
        """Whether there is such a backup: a full one that may be used, of this server, behind what was lost."""
        return any(
            entry.problem is None
            and entry.manifest.kind is BackupKind.FULL
            and entry.manifest.system_id == system_id
            and entry.manifest.timeline_id >= self.timeline_id
            and Lsn.parse(entry.manifest.start_lsn) >= Lsn.parse(self.after_lsn)
            for entry in entries
        )


class DiskLost(Frozen):
    """The archiver began on an empty disk, and the buckets hold WAL already."""

    since: AwareDatetime
    from_lsn: str  # the primary was asked for everything from here on


class WalStatus(Frozen):
    """One archiver. LSNs as PostgreSQL prints them, sizes in bytes."""

    server: str
    at: AwareDatetime
    system_id: str = ""
    timeline_id: int = 0
    received_lsn: str = ""  # of the newest closed segment on the archiver's disk or in a bucket: its end
    server_lsn: str = ""  # the server's own, when it last answered
    buckets: Mapping[str, Durable] = {}  # of closed segments
    open: Durable | None = None  # with the open segment; None where none is sent
    backlog_bytes: int = 0  # closed segments on the archiver's disk that not every bucket has
    free_bytes: int = 0  # of the archiver's disk
    slot: SlotFacts | None = None
    synchronous: bool = False
    alarms: tuple[WalAlarm, ...] = ()
    base_wanted: BaseWanted | None = None

    @property
    def newest(self) -> datetime | None:
        """The newest moment that would survive the loss of the server and of the archiver."""
        moments = [each.at for each in (*self.buckets.values(), self.open) if each is not None and each.at is not None]
        return max(moments, default=None)

    def covered(self, bucket: str) -> datetime | None:
        """Up to when everything committed would survive together with this bucket. With one bucket alone, what is sent
        of the open segment survives together with it."""
        known = self.buckets.get(bucket)
        return self.newest if len(self.buckets) < 2 else (None if known is None else known.at)

    def stale(self, now: datetime) -> bool:
        return now - self.at > STALE


def status_place(policy: PhysicalPolicy) -> tuple[str, str]:
    """Bucket and key. It changes all the time, so it goes into the bucket without lock where there is one."""
    return policy.open_bucket or policy.wal_buckets[-1], f"{policy.prefix}wal/{policy.server}/status.json"


def sign_status(status: WalStatus, key: Ed25519PrivateKey) -> bytes:
    return Signed[WalStatus].sign(status, key).body()


async def read_status(objects: ObjectStore, policy: PhysicalPolicy) -> WalStatus | None:
    """What the archiver of this server said last; None when it never did. Look at `stale` as well.

    Raises VerificationError when it was not signed by a trusted key.
    """
    bucket, key = status_place(policy)
    if await objects.head(bucket, key) is None:
        return None
    status = Signed[WalStatus].parse(
        await objects.get(bucket, key), policy.trusted_signers, what=f"The status `{key}` in bucket `{bucket}`"
    )
    if status.server != policy.server:
        raise VerificationError(f"`{key}` is the status of `{status.server}`: it was moved.")
    return status
