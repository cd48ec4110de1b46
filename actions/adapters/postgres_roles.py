"""The short-lived roles of a load: named after the database they load, marked with the plan, dropped at its end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from psycopg import sql

from actions.adapters.postgres_connections import AsyncConnection, ServerConnections
from actions.errors import TemporaryError, UserError
from actions.ports import RoleFacts
from actions.site import DatabaseRef

LOADS, GIVES = "drbot_load_", "drbot_give_"

ROLES = """
    SELECT r.rolname, coalesce(shobj_description(r.oid, 'pg_authid'), ''),
           (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid = r.oid)
      FROM pg_roles r
     WHERE r.rolname ~ '^drbot_(load|give)_[0-9a-f]{16}$'
     ORDER BY r.rolname
"""
# Every database in which something depends on the role: objects it owns, and rights it was given.
PLACES = """
    SELECT DISTINCT d.datname, pg_get_userbyid(d.datdba)
      FROM pg_shdepend s
      JOIN pg_database d ON d.oid = s.dbid OR (s.classid = 'pg_database'::regclass AND d.oid = s.objid)
     WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = (SELECT oid FROM pg_roles WHERE rolname = %s)
     ORDER BY 1
"""


def role_names(database: DatabaseRef) -> tuple[str, str]:
    """The role that restores into this database, and the one that carries the owners' passing rights."""
    short = hashlib.sha256(str(database).encode()).hexdigest()[:16]
    return LOADS + short, GIVES + short


async def mark_role(connection: AsyncConnection, name: str, mark: str) -> None:
    await connection.execute(sql.SQL("COMMENT ON ROLE {} IS {}").format(sql.Identifier(name), sql.Literal(mark)))


async def loading_roles(connection: AsyncConnection) -> Sequence[RoleFacts]:
    rows = await (await connection.execute(ROLES.encode())).fetchall()
    return [RoleFacts(name=name, mark=mark, sessions=sessions) for name, mark, sessions in rows]


async def discard_loading_role(connections: ServerConnections, server: str, name: str, *, mark: str) -> None:
    """As `PostgresAdmin.discard_role` promises."""
    async with connections.session(server) as connection:
        found = next((role for role in await loading_roles(connection) if role.name == name), None)
    if found is None:
        return
    if not mark or found.mark != mark:
        raise UserError(
            f"Role `{name}` on `{server}` is not dropped: its mark is `{found.mark or 'none'}`, not `{mark}`. "
            "Look at it before you drop it by hand."
        )
    if found.sessions:
        raise TemporaryError(f"Role `{name}` on `{server}` is logged in; it is not dropped while it works.")
    await drop_role(connections, server, name)


async def end_role_sessions(connections: ServerConnections, server: str, name: str) -> None:
    """Keep the role from logging in again, and end what it does. Nothing when there is no such role."""
    async with connections.session(server) as connection:
        known = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
        if await known.fetchone() is None:
            return
        await connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(name)))
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [name])


async def drop_role(connections: ServerConnections, server: str, name: str) -> None:
    """Drop a role of a load with its rights, wherever it has any; objects it still owns become the database owner's."""
    async with connections.session(server) as connection:
        places = await (await connection.execute(PLACES.encode(), [name])).fetchall()
    for database, owner in places:
        async with connections.session(server, database) as connection:
            await connection.execute(
                sql.SQL("REASSIGN OWNED BY {} TO {}").format(sql.Identifier(name), sql.Identifier(owner))
            )
            await connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
    async with connections.session(server) as connection:
        await connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))
