"""What a restore runs with, and whether it was upgraded since the newest proof. A tool upgrade breaks the restore, not
the backup, so nothing but a restore test tells."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field

from actions.backup.physical import Proof
from actions.errors import DrError
from actions.ports import Ports
from actions.steps.phrases import version

SERVER = "PostgreSQL"
"""The server whose backups they are, among the versions."""


@dataclass(frozen=True)
class Upgrades:
    """What differs from the newest proof."""

    found: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name -> its version as of the proof, and now


async def of_bases(ports: Ports, server: str) -> Mapping[str, str]:
    """The versions of what restores base backups of this server, and its own."""
    return {**await _server(ports, server), **await _told(ports.physical.versions(server))}


async def of_dumps(ports: Ports, database: str) -> Mapping[str, str]:
    """The same of dumps."""
    server = ports.site.database(database).server
    return {**await _server(ports, server), **await _told(ports.backups.versions(database))}


def upgrades(proofs: Sequence[Proof], now: Mapping[str, str]) -> Upgrades:
    """What differs from the newest proof that passed; nothing where none has."""
    proven = next((proof for proof in proofs if proof.problem is None), None)
    if proven is None:
        return Upgrades()
    known = sorted(proven.known.items())
    # What nobody can tell now, such as of a server that is away, was not upgraded.
    return Upgrades(found={name: (was, now[name]) for name, was in known if now.get(name, was) != was})


def words(found: Upgrades) -> str:
    """`pg_restore 18.2 to 18.3`."""
    return ", ".join(f"{name} {was} to {is_now}" for name, (was, is_now) in found.found.items())


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
