"""Indexes of a scratch server against their tables, by `pg_amcheck`: damage that page checksums cannot see."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import psycopg

from actions.adapters.postmaster import Postmaster, socket_directory
from actions.adapters.programs import Program, ProgramError
from actions.backup.scratch_place import ScratchPlace
from actions.errors import VerificationError

LIMIT = timedelta(hours=12)  # for one database
DAMAGED = 2  # exit code of `pg_amcheck`; another one means that it could not look
TOLD = 5  # relations that are named
_READ = 1 << 20  # bytes of its report: of a damaged table it lists every row
_NAMED = re.compile(r'^(?:btree index|heap table) "(.+?)"(?:, block|:$)', re.MULTILINE)


class CheckedServer(Protocol):
    """A scratch server that runs."""

    place: ScratchPlace
    programs: Path

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]: ...


async def check_indexes(server: CheckedServer) -> tuple[str, ...]:
    """Check every index of every database that has the extension `amcheck`; their names. Recovery cannot make it.

    Raises VerificationError that names what is damaged and the database it is in.
    """
    checked = []
    for database in await asyncio.to_thread(_with_amcheck, server):
        argv: list[str | Path] = [
            server.programs / "pg_amcheck",
            "--no-password",
            "--heapallindexed",
            "--jobs=2",
            database,
        ]
        report = server.place.folder / "amcheck.log"  # it reports damage on standard output
        report.unlink(missing_ok=True)
        try:
            with Program.start(argv, env=_environment(server), log=report) as program:
                await asyncio.to_thread(program.check, LIMIT)
        except ProgramError as error:
            raise VerificationError(await asyncio.to_thread(_said, error, database, report)) from error
        checked.append(database)
    return tuple(checked)


def _said(error: ProgramError, database: str, report: Path) -> str:
    """What people read of a check that did not end well. Blocking."""
    if error.code != DAMAGED:
        why = str(error).removeprefix("pg_amcheck ")
        return f"`pg_amcheck` could not check database `{database}`: it {why}. Put that right, then restore again."
    with report.open(errors="replace") as stream:
        said = stream.read(_READ)
    found = list(dict.fromkeys(_NAMED.findall(said)))
    more = f" and {len(found) - TOLD} more" if len(found) > TOLD else ""
    named = ", ".join(f"`{name}`" for name in found[:TOLD]) or f"`{database}`"
    first = " ".join(said.split())[:300]
    return (
        f"`pg_amcheck` found damage in database `{database}`: {named}{more}. It says first: {first}. The pages "
        "are as they were backed up, so production may be damaged alike. Where only indexes are named, `REINDEX INDEX` "
        "each of them in production and take a full base backup; otherwise restore from an earlier backup."
    )


def _with_amcheck(server: CheckedServer) -> list[str]:
    with server.connect() as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1").fetchall()
    found = []
    for (name,) in rows:
        with server.connect(str(name)) as connection:
            if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'amcheck'").fetchone():
                found.append(str(name))
    return found


def _environment(server: CheckedServer) -> Mapping[str, str]:
    claim = server.place.claim()
    return {
        "PGHOST": str(socket_directory(server.place.folder.absolute())),
        "PGPORT": str(Postmaster(server.place.data).port() or 0),
        "PGUSER": claim.superuser if claim else "postgres",
    }
