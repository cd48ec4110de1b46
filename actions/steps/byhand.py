"""Commands for people, ready to paste: every name quoted, never a secret in them.

They are shown, never run. `psql` finds each server of the plan file as a service of `pg_service.conf`, kubectl each
cluster as a context; both keep host, user and password out of the command line.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from actions.site import WorkloadKind, WorkloadRef

STOP_NOTES = ("dr.superprismora.com/replicas", "dr.superprismora.com/mark")
"""The annotations of a stopped workload."""


def identifier(name: str) -> str:
    """A SQL identifier in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A SQL string; with `standard_conforming_strings` on, as it is by default, only quotes are doubled."""
    return "'" + value.replace("'", "''") + "'"


def conninfo(server: str, database: str) -> str:
    """A libpq connection string, quoted as libpq reads it."""
    return f"service={_conninfo_value(server)} dbname={_conninfo_value(database)}"


def _conninfo_value(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def psql(server: str, *statements: str, database: str = "postgres") -> str:
    """One psql call; several statements become one transaction."""
    words = ["psql", "-X", "-v", "ON_ERROR_STOP=1", "-d", conninfo(server, database)]
    if len(statements) > 1:
        words.append("-1")
    for statement in statements:
        words += ["-c", statement]
    return shlex.join(words)


COUNTS = (
    "SELECT format('SELECT %L, count(*) FROM ONLY %I.%I;', schemaname || '.' || relname, schemaname, relname) "
    "FROM pg_stat_user_tables ORDER BY schemaname, relname"
)
"""SQL that gives one statement for each table: its name and its rows."""


def exact_rows(server: str, database: str) -> str:
    """Two psql calls that count the rows of every table. The server's own figures (`n_live_tup`) are estimates, and
    zero in a server that was recovered."""
    words = ["psql", "-XAt", "-v", "ON_ERROR_STOP=1", "-d", conninfo(server, database)]
    return f"{shlex.join([*words, '-c', COUNTS])} | {shlex.join(words)}"


def end_sessions(database: str) -> str:
    """SQL that ends every session of a database but its own."""
    name = literal(database)
    return (  # shown to people, never run from here
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {name} "  # noqa: S608
        "AND pid <> pg_backend_pid()"
    )


def count_sessions(database: str) -> str:
    """SQL that counts the sessions of a database."""
    return f"SELECT count(*) FROM pg_stat_activity WHERE datname = {literal(database)}"  # noqa: S608 - shown only


def who_is_in(database: str) -> str:
    """SQL that shows whose sessions are in a database, and from where."""
    return (
        "SELECT usename, client_addr, application_name, count(*) FROM pg_stat_activity "  # noqa: S608 - shown only
        f"WHERE datname = {literal(database)} AND backend_type = 'client backend' GROUP BY 1, 2, 3"
    )


def allow_connections(database: str, *, allowed: bool) -> str:
    """SQL that closes or opens a database."""
    return f"ALTER DATABASE {identifier(database)} WITH ALLOW_CONNECTIONS {'true' if allowed else 'false'}"


def limit_connections(database: str, limit: int) -> str:
    """SQL that lets in so many sessions of people who are no superusers; -1 is no limit."""
    return f"ALTER DATABASE {identifier(database)} WITH CONNECTION LIMIT {limit}"


def rename(before: str, after: str) -> str:
    """SQL that renames a database."""
    return f"ALTER DATABASE {identifier(before)} RENAME TO {identifier(after)}"


def comment(database: str, mark: str) -> str:
    """SQL that sets our mark on a database."""
    return f"COMMENT ON DATABASE {identifier(database)} IS {literal(mark)}"


def kubectl(cluster: str, namespace: str, *words: str) -> str:
    """A kubectl call with its cluster and namespace spelled out."""
    return shlex.join(["kubectl", "--context", cluster, "-n", namespace, *words])


def merge_patch(cluster: str, namespace: str, thing: str, body: Mapping[str, Any]) -> str:
    """A kubectl merge patch."""
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    return kubectl(cluster, namespace, "patch", thing, "--type", "merge", "-p", text)


def thing(ref: WorkloadRef) -> str:
    """`deployment/name`."""
    return f"{ref.kind.value.lower()}/{ref.name}"


def scaled(ref: WorkloadRef, replicas: int) -> str:
    """Scale a workload; a CronJob is suspended (0) or resumed."""
    if ref.kind is WorkloadKind.CRON_JOB:
        return merge_patch(ref.cluster, ref.namespace, thing(ref), {"spec": {"suspend": replicas == 0}})
    return kubectl(ref.cluster, ref.namespace, "scale", thing(ref), f"--replicas={replicas}")


def unrecorded(ref: WorkloadRef) -> str:
    """Remove what a stop has noted on a workload: whoever started it by hand has given its replicas back."""
    return kubectl(ref.cluster, ref.namespace, "annotate", thing(ref), *(f"{name}-" for name in STOP_NOTES))


def restarted(ref: WorkloadRef) -> str:
    """Replace the pods of a Deployment or a StatefulSet."""
    return kubectl(ref.cluster, ref.namespace, "rollout", "restart", thing(ref))


def rollout_status(ref: WorkloadRef) -> str:
    """Wait for a rollout."""
    return kubectl(ref.cluster, ref.namespace, "rollout", "status", thing(ref), "--timeout=5m")


def aws(endpoint: str | None, *words: str) -> str:
    """An aws call, against the store's own endpoint where it has one."""
    return shlex.join(["aws", *(["--endpoint-url", endpoint] if endpoint else []), *words])
