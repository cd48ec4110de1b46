"""A database that holds what breaks careless dumps: names, owners, partitions, rights, large objects."""

import contextlib
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

NAME = 'Nästy "db" %s x'

# Each by itself: other tests of the server may have made one of them.
ROLES = (
    "CREATE ROLE app LOGIN PASSWORD 'app'",
    "CREATE ROLE reporting NOLOGIN",
    'CREATE ROLE "Rôle ""q"" x" NOLOGIN',
    "CREATE ROLE reader LOGIN",
)
RIGHTS = ("GRANT reporting TO reader", "ALTER ROLE reporting SET search_path = '$user', public")


def make_nasty_database(dsn: str, name: str = NAME) -> None:
    """Create it, owned by the unprivileged role `app`, on the server of a superuser's connection string."""
    quoted = sql.Identifier(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for role in ROLES:
            with contextlib.suppress(psycopg.errors.DuplicateObject):
                connection.execute(role)
        for right in RIGHTS:
            connection.execute(right)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(quoted))
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER app").format(quoted))
        for statement in (
            "ALTER DATABASE {} SET work_mem = '7MB'",
            "ALTER ROLE app IN DATABASE {} SET search_path = app, public",
            "GRANT CONNECT ON DATABASE {} TO reporting WITH GRANT OPTION",
            "REVOKE CONNECT ON DATABASE {} FROM PUBLIC",
        ):
            connection.execute(sql.SQL(statement).format(quoted))
    content = (Path(__file__).parent / "sql" / "nasty_database.sql").read_bytes()
    with psycopg.connect(make_conninfo(dsn, dbname=name), autocommit=True) as connection:
        connection.execute(content)
