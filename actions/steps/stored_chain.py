"""A base backup and its WAL brought back without the bot: by `aws`, `age`, `zstd` and PostgreSQL's own programs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Self

from actions.backup.chain import chain
from actions.backup.physical import PhysicalEntry, RecoveryTarget
from actions.backup.wal import SEALED, wal_folder
from actions.site import Frozen, Site
from actions.steps import byhand


class StoredMember(Frozen):
    """One stored base backup."""

    bucket: str
    key: str
    sha256: str
    endpoint: str | None = None


class StoredWal(Frozen):
    """Where one bucket has the closed segments."""

    bucket: str
    folder: str  # what comes before the name of every segment
    endpoint: str | None = None


class StoredChain(Frozen):
    """What a restore reads. `PGDATA` names a folder that is to be, `AGE_IDENTITY_FILE` the key that opens backups."""

    members: tuple[StoredMember, ...]  # the full backup first
    wal: tuple[StoredWal, ...] = ()
    superuser: str = "postgres"

    @classmethod
    def of(cls, site: Site, server: str, entries: Sequence[PhysicalEntry], base: PhysicalEntry) -> Self | None:
        """None where the chain is broken."""
        policy, members = site.physical_of(server), chain(entries, base)
        if members is None:
            return None
        stores = {name: bucket.endpoint for name, bucket in site.buckets.items()}
        return cls(
            members=tuple(
                StoredMember(
                    bucket=member.bucket,
                    key=member.manifest.stored.key,
                    sha256=member.manifest.stored.sha256,
                    endpoint=stores.get(member.bucket),
                )
                for member in members
            ),
            # The last one named is the one in the other region, so it is asked first.
            wal=tuple(
                StoredWal(bucket=name, folder=wal_folder(policy), endpoint=stores.get(name))
                for name in reversed(policy.wal_buckets)
            ),
            superuser=base.manifest.superuser,
        )

    def commands(self, target: RecoveryTarget) -> tuple[str, ...]:
        """Ready to paste, in this order, each once the one before it has ended well."""
        folders = ['"$PGDATA"'] if len(self.members) == 1 else [f'"$PGDATA.{n}"' for n in range(len(self.members))]
        lines = [f"umask 077 && mkdir -p {' '.join(folders)}  # export PGDATA and AGE_IDENTITY_FILE before"]
        for member, folder in zip(self.members, folders, strict=True):
            lines += _unpacked(member, folder)
        if len(folders) > 1:
            lines.append(f'pg_combinebackup --no-manifest --output "$PGDATA" {" ".join(folders)}')
        return (*lines, *replay_by_hand(target, superuser=self.superuser, restore_command=self._restore_command()))

    def _restore_command(self) -> str:
        fetched = [
            byhand.aws(wal.endpoint, "s3", "cp", "--quiet", f"s3://{wal.bucket}/{wal.folder}%f{SEALED}", f"%p{SEALED}")
            for wal in self.wal
        ]
        if not fetched:
            return ""
        # Its first line says what a segment is; the rest is what `age` has made.
        opened = f'tail -n +2 %p{SEALED} | age -d -i "$AGE_IDENTITY_FILE" | zstd -qdfo %p && rm %p{SEALED}'
        return f"{{ {' || '.join(fetched)}; }} && {opened}"


def replay_by_hand(target: RecoveryTarget, *, superuser: str, restore_command: str) -> tuple[str, ...]:
    """From the files of a base backup in `PGDATA` to a server that rests at the target, looked at and checked."""
    settings = [
        "archive_mode = off",
        "listen_addresses = ''",
        "ssl = off",
        "shared_preload_libraries = ''",
        "primary_conninfo = ''",
        *([f"restore_command = {byhand.literal(restore_command)}"] if restore_command else []),
        *_stop(target),
    ]
    socket = "\"unix_socket_directories = '$PGDATA'\""  # a folder that nobody else can enter
    start = 'pg_ctl start -w -t 3600 -D "$PGDATA" -l "$PGDATA.log"'
    asked = "SELECT pg_get_wal_replay_pause_state(), pg_last_xact_replay_timestamp(), pg_last_wal_replay_lsn()"
    connected = f'psql -XAt -h "$PGDATA" -U {shlex.quote(superuser)} -d postgres'
    return (
        'touch "$PGDATA/postgresql.conf" && echo "local all all trust" > "$PGDATA/pg_hba.conf"',
        f'printf "%s\\n" {socket} {shlex.join(settings)} >> "$PGDATA/postgresql.auto.conf"',
        # A recovery without a target would end with a promotion; a standby waits at the end of the WAL.
        f'touch "$PGDATA/{"standby" if target.latest else "recovery"}.signal"',
        f"{start}  # as an account that is not root",
        f'{connected} -c "{asked}"  # {_there(target)}',
        'pg_ctl stop -w -D "$PGDATA" && pg_checksums --check -D "$PGDATA"  # "not enabled": it has none, go on',
        start,
    )


def _unpacked(member: StoredMember, folder: str) -> list[str]:
    stored = f'{folder[:-1]}.age"'
    return [
        f"{byhand.aws(member.endpoint, 's3', 'cp', f's3://{member.bucket}/{member.key}')} {stored}",
        f'echo "{member.sha256}  {stored[1:-1]}" | sha256sum -c',
        f'age -d -i "$AGE_IDENTITY_FILE" {stored} | zstd -qd | tar -x -C {folder} && rm {stored}',
        f"pg_verifybackup --no-parse-wal {folder}",
    ]


def _stop(target: RecoveryTarget) -> list[str]:
    timeline = [] if target.timeline_id is None else [f"recovery_target_timeline = {target.timeline_id}"]
    if target.latest:
        return timeline
    values = {"time": target.time, "lsn": target.lsn, "xid": target.xid, "name": target.name}
    [(kind, value)] = [(kind, value) for kind, value in values.items() if value is not None]
    return [
        *timeline,
        f"recovery_target_{kind} = {byhand.literal(str(value))}",
        f"recovery_target_inclusive = {'on' if target.inclusive else 'off'}",
        "recovery_target_action = pause",
    ]


def _there(target: RecoveryTarget) -> str:
    if target.latest:
        return "ask again until it stays the same; what the bucket has of the open segment, only the bot puts together"
    return "not there before it says `paused`, whatever pg_ctl said; otherwise read the log"
