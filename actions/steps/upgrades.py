"""What a restore runs with, and whether it was upgraded since the newest proof. A tool upgrade breaks the restore, not
the backup, so nothing but a restore test tells."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence

from actions.backup.physical import Proof
from actions.errors import DrError
from actions.ports import Ports
from actions.steps.phrases import version

SERVER = "PostgreSQL"
"""The server whose backups they are, among the versions."""

Upgrades = Mapping[str, tuple[str, str]]
"""Name -> its version as of the proof, and now."""


async def of_bases(ports: Ports, server: str) -> Mapping[str, str]:
    """The versions of what restores base backups of this server, and its own."""
    return {**await _server(ports, server), **await _told(ports.physical.versions(server))}


async def of_dumps(ports: Ports, database: str) -> Mapping[str, str]:
    """The same of dumps."""
    server = ports.site.database(database).server
    return {**await _server(ports, server), **await _told(ports.backups.versions(database))}


def upgrades(proofs: Sequence[Proof], now: Mapping[str, str]) -> Upgrades:
    """What differs from the newest proof that passed. What either side does not know, such as the version of a server
    that does not answer, is no upgrade."""
    proven = next((proof for proof in proofs if proof.problem is None), None)
    if proven is None:
        return {}
    return {name: (was, now[name]) for name, was in sorted(proven.known.items()) if now.get(name) and now[name] != was}


def words(found: Upgrades) -> str:
    """`pg_restore 18.2 to 18.3`."""
    return ", ".join(f"{name} {was} to {is_now}" for name, (was, is_now) in found.items())


async def _server(ports: Ports, server: str) -> Mapping[str, str]:
    try:
        return {SERVER: version((await ports.postgres.server(server)).version)}
    except DrError:
        return {}


async def _told(asked: Awaitable[Mapping[str, str]]) -> Mapping[str, str]:
    try:
        return await asked
    except DrError:
        return {}
