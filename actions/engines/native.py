"""The native engine: base backups through the replication protocol, WAL by `drbot wal`, all of it in buckets."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from actions.backup.native_catalogue import PROVEN, BaseFolder, server_prefix
from actions.backup.physical import PhysicalEntry, Proof, RecoveryTarget
from actions.backup.uploads import MANIFEST
from actions.engine import Copied, Engine, Means, Stored, Wanted
from actions.ports import PhysicalBackups
from actions.site import PhysicalPolicy, Site
from actions.steps import byhand
from actions.steps.stored_chain import StoredChain, StoredMember


class Native(Engine):
    """PostgreSQL 17 and newer; needs nothing but a replication connection."""

    name = "native"
    title = "the native engine"
    about = "PostgreSQL 17 and newer, over the replication protocol"
    archived_by_us = True
    one_bucket = ""
    verified = "signatures and hashes"
    read_by_kit = True
    full_instead = True

    def make(self, means: Means) -> PhysicalBackups:
        from actions.backup.native import NativeEngine

        return NativeEngine(
            means.site,
            objects=means.objects,
            secrets=means.secrets,
            clock=means.clock,
            tools=means.tools,
            servers=means.servers,
            records=means.records,
            scratch_directory=means.scratch_directory,
            work_directory=means.work_directory,
        )

    def archive_again(self, policy: PhysicalPolicy) -> str:  # noqa: ARG002 - a command names a database, not a server
        return "start its archiver again (`drbot wal DATABASE`)"

    def take_by_hand(self, wanted: Wanted) -> tuple[str, ...]:
        recipients = " ".join(f"-r {shlex.quote(item)}" for item in wanted.recipients)
        target = f"s3://{wanted.bucket}/{wanted.prefix}manual/{wanted.backup}.tar.age"
        # By hand always a whole one: it needs nothing but itself.
        source, file = shlex.quote(byhand.conninfo(wanted.server, "postgres")), f"{wanted.backup}.tar.age"
        return (
            f"pg_basebackup -d {source} -D - -Ft -X fetch -c fast | zstd -1 | age {recipients} > {file}",
            byhand.aws(wanted.endpoint, "s3", "cp", file, target),
        )

    def restore_by_hand(self, stored: Stored, target: RecoveryTarget) -> tuple[str, ...]:
        member = StoredMember(bucket=stored.bucket, key=stored.key, sha256=stored.sha256, endpoint=stored.endpoint)
        return (stored.chain or StoredChain(members=(member,))).commands(target)

    def check_by_hand(self, stored: Stored) -> tuple[str, ...]:
        if not stored.sha256:  # of a plan from before such steps named their engine, which was another one
            return (byhand.aws(stored.endpoint, "s3", "ls", "--recursive", f"s3://{stored.bucket}/{stored.key}"),)
        return (
            byhand.aws(stored.endpoint, "s3", "cp", f"s3://{stored.bucket}/{stored.key}", "base.age"),
            f"echo {shlex.quote(f'{stored.sha256}  base.age')} | sha256sum -c",
        )

    def copy_by_hand(self, copied: Copied) -> tuple[str, ...]:
        place, folder = f"{copied.prefix}base/{copied.server}/{copied.backup}/", f"{copied.backup}/"
        source, target = f"s3://{copied.bucket}/{place}", f"s3://{copied.into}/{place}"
        return (
            byhand.aws(copied.endpoint, "s3", "cp", "--recursive", source, folder),
            # The manifest makes it a backup, so it goes last.
            byhand.aws(copied.into_endpoint, "s3", "cp", "--recursive", "--exclude", MANIFEST, folder, target),
            byhand.aws(copied.into_endpoint, "s3", "cp", f"{folder}{MANIFEST}", f"{target}{MANIFEST}"),
        )

    def remove_by_hand(self, stored: Stored) -> tuple[str, ...]:
        folder = stored.key.rpartition("/")[0]
        return (byhand.aws(stored.endpoint, "s3", "rm", "--recursive", f"s3://{stored.bucket}/{folder}/"),)

    def chain(
        self, site: Site, server: str, entries: Sequence[PhysicalEntry], base: PhysicalEntry
    ) -> StoredChain | None:
        return StoredChain.of(site, server, entries, base)

    def leftovers(self, policy: PhysicalPolicy) -> str | None:
        return server_prefix(policy)

    def proof_beside(self, policy: PhysicalPolicy, proof: Proof) -> str | None:
        return BaseFolder(policy, proof.backup).record(PROVEN, proof.proven_at) if proof.backup else None

    def signed_unnamed(self, label: str) -> bool:
        return not label


ENGINE = Native()
