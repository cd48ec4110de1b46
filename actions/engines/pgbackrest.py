"""pgBackRest: backups, WAL and restores are its own work, in a repository of its own."""

from __future__ import annotations

import shlex

from actions.backup.pgbackrest_keys import PgBackRestKeys, stanza_name
from actions.backup.physical import BackupKind, RecoveryTarget
from actions.engine import Engine, Means, Stored, Wanted
from actions.ports import PhysicalBackups
from actions.site import PhysicalPolicy
from actions.steps.stored_chain import replay_by_hand


class PgBackRest(Engine):
    """Any version of PostgreSQL; pgBackRest is set up on the server and on the worker."""

    name = "pgbackrest"
    title = "pgBackRest"
    about = "older versions too, with a pgBackRest that you have set up"
    keys = PgBackRestKeys
    archived_by_us = False
    verified = "pgBackRest's SHA-1 of every file"
    one_bucket = "name one bucket, and set up `repo2` in the configuration of the stanza"

    def make(self, means: Means) -> PhysicalBackups:
        from actions.adapters.pgbackrest import PgBackRestProgram
        from actions.backup.pgbackrest import PgBackRestEngine

        # As root, another account works there: it cannot enter what is ours alone.
        shared = means.data_directory / self.name
        return PgBackRestEngine(
            means.site,
            PgBackRestProgram(means.site, means.secrets, directory=shared),
            postgres=means.postgres,
            objects=means.objects,
            secrets=means.secrets,
            clock=means.clock,
            tools=means.tools,
            servers=means.servers,
            records=means.records,
            scratch_directory=means.scratch_directory,
            work_directory=shared,
        )

    def label(self, policy: PhysicalPolicy) -> str:
        return stanza_name(policy)

    def archive_again(self, policy: PhysicalPolicy) -> str:
        push = f"pgbackrest --stanza={stanza_name(policy)} archive-push %p"
        return (
            "name its folder, socket and port in pgBackRest's configuration (`pg1-path`, `pg1-socket-path`, "
            f"`pg1-port`), set `archive_mode = on` and `archive_command = '{push}'` on it and restart it"
        )

    def take_by_hand(self, wanted: Wanted) -> tuple[str, ...]:
        kind = "full" if wanted.kind is BackupKind.FULL else "incr"
        return (shlex.join(["pgbackrest", f"--stanza={wanted.label}", f"--type={kind}", "backup"]),)

    def restore_by_hand(self, stored: Stored, target: RecoveryTarget) -> tuple[str, ...]:
        pgbackrest = f'pgbackrest --stanza={shlex.quote(stored.label)} --reset-pg1-host --pg1-path="$PGDATA"'
        options = f'--tablespace-map-all="$PGDATA.tablespaces" --set={_name(stored)} --type=none'
        return (
            'umask 077 && mkdir -p "$PGDATA" "$PGDATA.tablespaces"  # export PGDATA, and PGBACKREST_CONFIG if need be',
            f"{pgbackrest} {options} restore",
            *replay_by_hand(
                target,
                superuser=stored.superuser or "postgres",
                restore_command=f'{pgbackrest} archive-get %f "%p"',
            ),
        )

    def check_by_hand(self, stored: Stored) -> tuple[str, ...]:
        # It ends with 0 whatever it finds; older versions know no `--set` here, and read everything.
        return (shlex.join(["pgbackrest", f"--stanza={stored.label}", "--output=text", "--verbose", "verify"]),)

    def remove_by_hand(self, stored: Stored) -> tuple[str, ...]:
        return (shlex.join(["pgbackrest", f"--stanza={stored.label}", f"--set={_name(stored)}", "expire"]),)

    def signed_unnamed(self, label: str) -> bool:
        return bool(label)


def _name(stored: Stored) -> str:
    """pgBackRest's own name of the backup: its folder."""
    return stored.key.rstrip("/").rpartition("/")[2]


ENGINE = PgBackRest()
