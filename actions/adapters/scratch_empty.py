"""An empty PostgreSQL in a scratch place, for a dump to be loaded into."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from datetime import timedelta

from actions.adapters.index_check import check_indexes
from actions.adapters.postgres_initdb import QUICK, initdb
from actions.adapters.postmaster import READY, Postmaster, socket_directory
from actions.adapters.programs import ProgramError, run
from actions.adapters.scratch_config import write_empty_configuration
from actions.adapters.scratch_server import RecoveringServer, ScratchPrograms
from actions.backup.physical_tools import EmptyServers
from actions.backup.scratch_place import ScratchPlace
from actions.errors import TemporaryError, UserError

LOOK = 0.05  # seconds
START = timedelta(minutes=2)


class EmptyScratch(EmptyServers):
    """With the programs of the server whose dump it is, as every scratch instance."""

    def __init__(self, programs: ScratchPrograms) -> None:
        self._programs = programs

    async def make(self, place: ScratchPlace) -> None:
        server = await self._programs.server(place)
        try:
            await asyncio.to_thread(_initialise, server)
        except ProgramError as error:
            raise UserError(f"No empty server for the dump could be made in `{place.folder}`: {error}") from error
        await asyncio.to_thread(server.launch, detached=False)
        limit = time.monotonic() + START.total_seconds()
        while Postmaster(place.data).status() != READY:
            if server.ended():
                said = " ".join((await asyncio.to_thread(server.said)).split())[-500:]
                raise UserError(f"The empty server for the dump did not start: {said}")
            if time.monotonic() > limit:
                raise TemporaryError(f"The empty server in `{place.folder}` was not ready after {START}; try again.")
            await asyncio.sleep(LOOK)

    async def check_indexes(self, place: ScratchPlace) -> tuple[str, ...]:
        return await check_indexes(await self._programs.server(place))

    async def versions(self, place: ScratchPlace) -> Mapping[str, str]:
        server = await self._programs.server(place)
        said = (await run([server.programs / "postgres", "--version"], timeout=QUICK)).text
        match = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)*)", said)
        return {"postgres": match[1] if match else said.strip()}

    async def stop(self, place: ScratchPlace) -> None:
        if place.claim() is not None:
            server = await self._programs.server(place)
            await asyncio.to_thread(server.stop)


def _initialise(server: RecoveringServer) -> None:
    place, claim = server.place, server.place.claim()
    superuser = claim.superuser if claim is not None else "postgres"
    place.data.mkdir(mode=0o700)
    server.own(place.folder, place.data)
    initdb(server.programs / "initdb", place.data, superuser=superuser, account=server.account)
    socket = socket_directory(place.folder.absolute())
    write_empty_configuration(place.data, socket=socket, superuser=superuser, account=server.account)
    server.own(*(place.data / name for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")))
