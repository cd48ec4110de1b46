"""What pg_dump leaves out: roles, memberships, the database's own ACL and settings. Read them, and give them back.

Given back roles can never log in and never get an attribute that rights over the server hang on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from psycopg import sql

from actions.adapters.postgres_connections import AsyncConnection
from actions.backup.manifest import Globals, Role

log = logging.getLogger(__name__)

# Their values are lists that PostgreSQL stores quoted (GUC_LIST_QUOTE in guc_tables.c).
LIST_SETTINGS = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)

ROLES = """
    WITH RECURSIVE named(oid) AS (
        SELECT datdba FROM pg_database WHERE datname = current_database()
        UNION SELECT refobjid FROM pg_shdepend
               WHERE refclassid = 'pg_authid'::regclass AND dbid IN (0, (SELECT oid FROM pg_database
                     WHERE datname = current_database()))
                 AND (dbid <> 0 OR (classid = 'pg_database'::regclass
                      AND objid = (SELECT oid FROM pg_database WHERE datname = current_database())))
        UNION SELECT setrole FROM pg_db_role_setting WHERE setrole <> 0
                 AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
        UNION SELECT (aclexplode(datacl)).grantee FROM pg_database WHERE datname = current_database()
    ), wanted(oid) AS (
        SELECT oid FROM named
        UNION SELECT m.roleid FROM pg_auth_members m JOIN wanted w ON m.member = w.oid
    ), members(oid) AS (
        -- Who logs in is often only a member of the role that owns or reads the data.
        SELECT oid FROM wanted UNION SELECT m.member FROM pg_auth_members m JOIN wanted w ON m.roleid = w.oid
    )
    SELECT r.rolname, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication, r.rolbypassrls,
           r.rolconnlimit,
           coalesce((SELECT setconfig FROM pg_db_role_setting s WHERE s.setrole = r.oid AND s.setdatabase = 0), '{}'),
           ARRAY(SELECT p.rolname::text FROM pg_auth_members m JOIN pg_roles p ON p.oid = m.roleid
                  WHERE m.member = r.oid ORDER BY 1)
      FROM pg_roles r
     WHERE r.oid IN (SELECT oid FROM members) AND r.rolname !~ '^(pg_|drbot_load_|drbot_give_)'
     ORDER BY r.rolname
"""


async def read_globals(connection: AsyncConnection) -> Globals:
    """The globals of the connected database: the roles that own, are granted or use something in it, its settings."""
    roles = [
        Role(
            name=row[0],
            superuser=row[1],
            create_role=row[2],
            create_database=row[3],
            login=row[4],
            replication=row[5],
            bypass_rls=row[6],
            connection_limit=row[7],
            settings=tuple(row[8]),
            member_of=tuple(row[9]),
        )
        for row in await (await connection.execute(ROLES)).fetchall()
    ]
    # Through jsonb, since the columns' names differ between versions (daticulocale until 16, datlocale since 17).
    entry = await _first(
        connection,
        "SELECT to_jsonb(d), pg_get_userbyid(datdba), pg_encoding_to_char(encoding),"
        " coalesce(datacl::text[], '{}') FROM pg_database d WHERE datname = current_database()",
    )
    settings = await (
        await connection.execute(
            "SELECT setrole::int8, pg_get_userbyid(setrole), setconfig FROM pg_db_role_setting"
            " WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 2"
        )
    ).fetchall()
    columns: dict[str, Any] = entry[0]
    return Globals(
        roles=tuple(roles),
        database_owner=entry[1],
        database_acl=tuple(entry[3]),
        database_settings=tuple(line for role, _, lines in settings if role == 0 for line in lines),
        role_settings={name: tuple(lines) for role, name, lines in settings if role != 0},
        encoding=entry[2],
        locale_provider=columns.get("datlocprovider") or "c",
        collate=columns["datcollate"],
        ctype=columns["datctype"],
        locale=columns.get("datlocale") or columns.get("daticulocale") or "",
    )


async def create_roles(connection: AsyncConnection, wanted: Globals, *, extra: Iterable[str] = ()) -> None:
    """Create the roles that are missing: NOLOGIN, no password, no attribute. Roles that exist are not touched."""
    known = {
        row[0]: row[1] for row in await (await connection.execute("SELECT rolname, rolsuper FROM pg_roles")).fetchall()
    }
    created: list[Role] = []
    for role in wanted.roles:
        if role.name in known:
            continue
        if role.superuser:
            log.warning("superuser_role_created_without_rights: %s", role.name)
        await connection.execute(
            sql.SQL("CREATE ROLE {} NOLOGIN CONNECTION LIMIT {}").format(
                sql.Identifier(role.name), sql.Literal(role.connection_limit)
            )
        )
        await _settings(connection, sql.SQL("ALTER ROLE {}").format(sql.Identifier(role.name)), role.settings)
        created.append(role)
    for name in extra:
        if name not in known and name not in {role.name for role in created}:
            await connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
    for role in created:
        for parent in role.member_of:
            # Never a way back to a superuser's rights or to a predefined role such as pg_execute_server_program.
            there = parent in known or any(parent == one.name for one in created)
            if not there or parent.startswith("pg_") or known.get(parent, False):
                log.warning("membership_not_given: %s in %s", role.name, parent)
                continue
            await connection.execute(
                sql.SQL("GRANT {} TO {}").format(sql.Identifier(parent), sql.Identifier(role.name))
            )


def created_as(wanted: Globals, server_version: int) -> sql.Composable:
    """The encoding and locale clauses of CREATE DATABASE."""
    parts: list[sql.Composable] = [
        sql.SQL("ENCODING {}").format(sql.Literal(wanted.encoding)),
        sql.SQL("LC_COLLATE {}").format(sql.Literal(wanted.collate)),
        sql.SQL("LC_CTYPE {}").format(sql.Literal(wanted.ctype)),
    ]
    if server_version >= 150000:
        names = {"c": "libc", "i": "icu", "b": "builtin"}
        parts.append(sql.SQL("LOCALE_PROVIDER {}").format(sql.Literal(names.get(wanted.locale_provider, "libc"))))
    if wanted.locale_provider == "i":
        parts.append(sql.SQL("ICU_LOCALE {}").format(sql.Literal(wanted.locale)))
    if wanted.locale_provider == "b":
        parts.append(sql.SQL("BUILTIN_LOCALE {}").format(sql.Literal(wanted.locale)))
    return sql.SQL(" ").join(parts)


async def apply_to_database(connection: AsyncConnection, database: str, wanted: Globals) -> None:
    """Give the database its settings and its ACL. Grants of unknown roles are left out and logged."""
    name = sql.Identifier(database)
    await _settings(connection, sql.SQL("ALTER DATABASE {}").format(name), wanted.database_settings)
    known = {row[0] for row in await (await connection.execute("SELECT rolname FROM pg_roles")).fetchall()}
    for role, lines in wanted.role_settings.items():
        if role in known:
            target = sql.SQL("ALTER ROLE {} IN DATABASE {}").format(sql.Identifier(role), name)
            await _settings(connection, target, lines)
    if not wanted.database_acl:
        return
    await connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
    for item in wanted.database_acl:
        grantee, privileges = split_acl_item(item)
        if grantee and grantee not in known:
            log.warning("database_grant_left_out: role %s is missing", grantee)
            continue
        for privilege, option in privileges:
            await connection.execute(
                sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                    sql.SQL(privilege),
                    name,
                    sql.Identifier(grantee) if grantee else sql.SQL("PUBLIC"),
                    sql.SQL(" WITH GRANT OPTION" if option and grantee else ""),
                )
            )


def split_acl_item(item: str) -> tuple[str, list[tuple[str, bool]]]:
    """`"we""ird"=CTc*/postgres` as grantee ("" is PUBLIC) and (privilege, with grant option) pairs."""
    if item.startswith('"'):
        end = 1
        while item[end : end + 1] != '"' or item[end : end + 2] == '""':
            end += 2 if item[end : end + 2] == '""' else 1
        grantee, rest = item[1:end].replace('""', '"'), item[end + 1 :]
    else:
        grantee, _, tail = item.partition("=")
        rest = "=" + tail
    letters = rest[1:].split("/", 1)[0]
    words = {"C": "CREATE", "T": "TEMPORARY", "c": "CONNECT"}
    pairs = [
        (words[letter], letters[place + 1 : place + 2] == "*")
        for place, letter in enumerate(letters)
        if letter in words
    ]
    return grantee, pairs


async def _settings(connection: AsyncConnection, target: sql.Composable, lines: Iterable[str]) -> None:
    for line in lines:
        name, _, value = line.partition("=")
        values = split_list(value) if name.lower() in LIST_SETTINGS else [value]
        literals: sql.Composable = sql.SQL(", ").join(map(sql.Literal, values)) if values else sql.Literal("")
        # A setting's name may have a dot (`app.tenant`): each part is an identifier of its own.
        await connection.execute(sql.SQL("{} SET {} = {}").format(target, sql.Identifier(*name.split(".")), literals))


def split_list(value: str) -> list[str]:
    """`"$user", public` as its elements, as SplitGUCList does."""
    found: list[str] = []
    place = 0
    while place < len(value):
        if value[place] in ", ":
            place += 1
        elif value[place] == '"':
            end = place + 1
            while end < len(value) and (value[end] != '"' or value[end : end + 2] == '""'):
                end += 2 if value[end : end + 2] == '""' else 1
            found.append(value[place + 1 : end].replace('""', '"'))
            place = end + 1
        else:
            end = value.find(",", place)
            end = len(value) if end < 0 else end
            found.append(value[place:end].strip())
            place = end
    return found


async def _first(connection: AsyncConnection, query: str) -> tuple[Any, ...]:
    rows = await (await connection.execute(query.encode())).fetchall()
    return tuple(rows[0])
