"""What each process of the bot may do in its database. The default is nothing.

One table decides: `RIGHTS`. `Database.migrate` brings the server to it, and a test compares it with what the server
says, so that a new table without a decision here fails. Every process has a role of its own and works as that role
alone: its login is a member of it and of no other, or, on one machine, the owner's login sets it at each connection.

Who may add which rows is a row-level policy: the clock cannot store a click, the command line cannot sign as Slack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, text

SCHEMA = "public"


class DatabaseRole(StrEnum):
    """Roles of the server, none of which can log in by itself."""

    OWNER = "drbot_owner"  # owns the tables; only `drbot migrate` works as it
    SLACK = "drbot_slack"
    WORKER = "drbot_worker"
    CLOCK = "drbot_clock"
    CLI = "drbot_cli"
    PROVER = "drbot_prover"


_S, _W, _C, _L = DatabaseRole.SLACK, DatabaseRole.WORKER, DatabaseRole.CLOCK, DatabaseRole.CLI
_P = DatabaseRole.PROVER
PROCESSES = (_S, _W, _C, _L, _P)


@dataclass(frozen=True, kw_only=True)
class May:
    """What a role may do with a table besides reading it. `update` names columns; `rows` is the SQL condition on rows
    that it may add, `own` that on rows that it may change or remove."""

    insert: bool = False
    update: tuple[str, ...] = ()
    delete: bool = False
    rows: str = "true"
    own: str = "true"


_READ = May()
_ADD = May(insert=True)
# Whoever queues a card locks the row that already waits for it, which takes the right to update a column.
_QUEUE = May(insert=True, update=("due_at",))
_BEAT = May(insert=True, update=("notes", "seen_at"), delete=True)
_SOURCE = "reply #>> '{who,source}'"
# Restore tests: asked for, tried again, or put back.
_PROVES = (
    "EXISTS (SELECT FROM plan WHERE plan.id = {run} AND (plan.action = 'backup.prove' OR "
    "plan.document ->> 'about' = 'backup.prove' AND plan.action IN ('run.retry', 'run.undo_finished')))"
)
_PROVING, _PROVING_RUN = _PROVES.format(run="run_id"), _PROVES.format(run="run.id")

RIGHTS: Mapping[str, Mapping[DatabaseRole, May]] = {
    "alembic_version": dict.fromkeys(PROCESSES, _READ),
    "inbox": {
        _S: May(insert=True, update=("finished_at",), rows="kind NOT IN ('schedule', 'desk.cli', 'desk.key')"),
        _W: _READ,
        _C: May(insert=True, delete=True, rows="kind = 'schedule'"),
        _L: May(insert=True, update=("finished_at",), rows="kind IN ('desk.cli', 'desk.key')"),
        _P: _READ,
    },
    "request": {
        _S: May(insert=True, rows=f"{_SOURCE} = 'slack' AND person <> 'schedule'"),
        _W: May(update=("state", "error", "plan_id")),
        _C: May(insert=True, rows=f"{_SOURCE} = 'clock' AND person = 'schedule'"),
        _L: May(insert=True, rows=f"{_SOURCE} IN ('cli', 'key') AND person <> 'schedule'"),
        _P: _READ,
    },
    "plan": {_S: _READ, _W: _ADD, _C: _READ, _L: _READ, _P: _READ},
    "signature": {
        _S: May(insert=True, rows="source = 'slack'"),
        _W: May(insert=True, rows="act = 'request'"),
        _C: _READ,
        _L: May(insert=True, rows="source = 'key'"),
        _P: _READ,
    },
    "refusal": dict.fromkeys(PROCESSES, _ADD),
    "run": {
        _S: _READ,
        _W: May(
            insert=True,
            update=(
                "state", "owner", "epoch", "lease_until", "progress", "message",
                "order", "approved_at", "ended_at",
            ),
        ),
        _C: _READ,
        _L: _READ,
        _P: May(
            update=("state", "owner", "epoch", "lease_until", "progress", "message", "order", "ended_at"),
            own=_PROVING_RUN,
        ),
    },
    "run_lock": {_W: May(insert=True, delete=True), _P: May(insert=True, delete=True, rows=_PROVING, own=_PROVING)},
    "journal": {_S: _READ, _W: _ADD, _C: _READ, _L: _READ, _P: May(insert=True, rows=_PROVING)},
    "timeline_entry": dict.fromkeys(PROCESSES, _ADD),
    # What a run has set aside is the worker's to say; that a person took, gave or looked at something is not.
    "custody_event": {
        _S: May(insert=True, rows="actor <> 'drbot'"),
        _W: May(insert=True, rows="actor = 'drbot'"),
        _C: _READ,
        _L: May(insert=True, rows="actor <> 'drbot'"),
        _P: _READ,
    },
    "incident": {
        _S: May(insert=True, update=("channel", "closed_at", "slack_suspect_since")),
        _W: May(update=("recovered_at",)),
        _C: _READ,
        _L: May(insert=True, update=("closed_at", "slack_suspect_since")),
        _P: _READ,
    },
    "outbox": {
        _S: May(insert=True, update=("state", "attempts", "error", "due_at", "sent_at")),
        # Pages are handed over by a worker, which knows the pager.
        _W: May(insert=True, update=("state", "attempts", "error", "due_at", "sent_at")),
        _C: _QUEUE,
        _L: May(insert=True, update=("state", "error", "due_at", "sent_at")),
        _P: _QUEUE,
    },
    "card_message": {_S: May(insert=True, update=("ts",)), _W: _READ, _C: _READ, _L: _READ, _P: _READ},
    "process": {_S: _BEAT, _W: _BEAT, _C: _BEAT, _L: _READ, _P: _BEAT},
    "account": {
        _S: May(insert=True, update=("problem", "groups", "seen_at")), _W: _READ, _C: _READ, _L: _READ, _P: _READ,
    },
    "plan_version": {_S: _READ, _W: _ADD, _C: _READ, _L: _READ, _P: _READ},
    # Alarms are a worker's, who can read the backups; the clock asks for the base backup that one wants.
    "alarm": {
        _S: _READ,
        _W: May(insert=True, update=("text", "wants_base", "raised_at", "cleared_at", "seen_at")),
        _C: _READ,
        _L: _READ,
    },
    "turn": {_W: May(insert=True, update=("taken_at",))},
    "visit": {
        _S: May(insert=True, update=("at", "refused")),
        _W: _READ,
        _C: _READ,
        _L: May(insert=True, update=("at", "refused")),
    },
    # Leaves are written by a trigger with its owner's rights; the sealer is the clock's.
    "leaf": dict.fromkeys(PROCESSES, _READ),
    "unsealed_leaf": {_S: _READ, _W: _READ, _C: May(delete=True), _L: _READ, _P: _READ},
    "sealed_leaf": {_S: _READ, _W: _READ, _C: _ADD, _L: _READ, _P: _READ},
    "subtree": {_S: _READ, _W: _READ, _C: _ADD, _L: _READ, _P: _READ},
    "checkpoint": {_S: _READ, _W: _READ, _C: _ADD, _L: _READ, _P: _READ},
    "consumed_plan": {_S: _READ, _W: _READ, _C: _ADD, _L: _READ, _P: _READ},
    "log_epoch": {_S: _READ, _W: _READ, _C: _ADD, _L: _READ, _P: _READ},
}  # fmt: skip


def bring(connection: Connection) -> None:
    """Make roles, owners, grants and policies what `RIGHTS` says. Nothing happens when they were made so before: a
    policy cannot be made anew while somebody uses its table."""
    mark = f"drbot rights {hashlib.sha256(repr(RIGHTS).encode()).hexdigest()[:16]}"
    known = text("SELECT obj_description('alembic_version'::regclass)")
    if connection.execute(known).scalar_one() == mark:
        return
    for role in DatabaseRole:
        connection.execute(text(_MAKE.format(role=role)))
    for statement in (*_owner(), *_nothing(connection), *_rights()):
        connection.execute(text(statement))
    connection.execute(text(f"COMMENT ON TABLE alembic_version IS '{mark}'"))


# Roles belong to the whole server and may be there already: made by an administrator, or for another database. A login
# that is not a superuser may administer what it makes, and must still give itself the use of it (PostgreSQL 16).
_MAKE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
        BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END;
    END IF;
    IF NOT pg_has_role(current_user, '{role}', 'USAGE') THEN
        EXECUTE format('GRANT {role} TO %I', current_user);
    END IF;
END $$
"""

_OWN_FUNCTIONS = f"""
DO $$ DECLARE item record; BEGIN
    FOR item IN
        SELECT p.oid::regprocedure AS name FROM pg_proc p
        WHERE p.pronamespace = '{SCHEMA}'::regnamespace AND p.proowner <> '{DatabaseRole.OWNER}'::regrole
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO {DatabaseRole.OWNER}', item.name);
    END LOOP;
END $$
"""  # noqa: S608 - names of our own


def _owner() -> Iterator[str]:
    """Functions too: those that run as their owner must not run as a superuser."""
    yield f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {DatabaseRole.OWNER}"
    for table in RIGHTS:
        yield f"ALTER TABLE {SCHEMA}.{table} OWNER TO {DatabaseRole.OWNER}"
    yield _OWN_FUNCTIONS


def _nothing(connection: Connection) -> Iterator[str]:
    everybody = ", ".join(["PUBLIC", *PROCESSES])
    yield f"REVOKE CREATE ON SCHEMA {SCHEMA} FROM {everybody}"
    yield f"REVOKE ALL ON ALL TABLES IN SCHEMA {SCHEMA} FROM {everybody}"
    yield f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {SCHEMA} FROM {everybody}"
    policies = text(f"SELECT policyname, tablename FROM pg_policies WHERE schemaname = '{SCHEMA}'")  # noqa: S608
    for policy, table in connection.execute(policies).all():
        yield f'DROP POLICY "{policy}" ON {SCHEMA}.{table}'


def _rights() -> Iterator[str]:
    yield f"GRANT USAGE ON SCHEMA {SCHEMA} TO {', '.join(PROCESSES)}"
    for table, roles in RIGHTS.items():
        limited = any((may.rows, may.own) != ("true", "true") for may in roles.values())
        yield f"ALTER TABLE {SCHEMA}.{table} {'ENABLE' if limited else 'DISABLE'} ROW LEVEL SECURITY"
        if limited:
            yield f"CREATE POLICY anybody_reads ON {SCHEMA}.{table} FOR SELECT USING (true)"
        for role, may in roles.items():
            yield f"GRANT {', '.join(_verbs(may))} ON {SCHEMA}.{table} TO {role}"
            if limited:
                yield from _policies(table, role, may)


def _verbs(may: May) -> Iterator[str]:
    yield "SELECT"
    if may.insert:
        yield "INSERT"
    if may.update:
        columns = ", ".join(f'"{column}"' for column in may.update)
        yield f"UPDATE ({columns})"
    if may.delete:
        yield "DELETE"


def _policies(table: str, role: DatabaseRole, may: May) -> Iterator[str]:
    on = f"{SCHEMA}.{table}"
    if may.insert:
        yield f"CREATE POLICY {role}_adds ON {on} FOR INSERT TO {role} WITH CHECK ({may.rows})"
    if may.update:
        yield f"CREATE POLICY {role}_changes ON {on} FOR UPDATE TO {role} USING ({may.own})"
    if may.delete:
        yield f"CREATE POLICY {role}_removes ON {on} FOR DELETE TO {role} USING ({may.own})"
