"""Scratch instances on this machine: PostgreSQL servers in folders of their own, read only until they are promoted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from actions.backup.physical import ScratchFacts, ScratchState
from actions.backup.scratch_place import ScratchPlace
from actions.errors import UserError
from actions.ports import Scratch


class ScratchInstances(Scratch):
    """Those of one directory, which is on the volume that restores write to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def instances(self) -> Sequence[ScratchFacts]:
        return await asyncio.to_thread(self._instances)

    async def find(self, scratch: str) -> ScratchFacts | None:
        return next((facts for facts in await self.instances() if facts.id == scratch), None)

    async def start(self, scratch: str) -> ScratchFacts:
        raise UserError(f"Scratch instance `{scratch}` cannot be started by this version.")

    async def promote(self, scratch: str) -> ScratchFacts:
        raise UserError(f"Scratch instance `{scratch}` cannot be promoted by this version.")

    async def stop(self, scratch: str) -> None:
        raise UserError(f"Scratch instance `{scratch}` cannot be stopped by this version.")

    async def discard(self, scratch: str, *, mark: str) -> None:
        raise UserError(f"Scratch instance `{scratch}` marked `{mark}` cannot be removed by this version.")

    def _instances(self) -> list[ScratchFacts]:
        found = []
        for place in ScratchPlace.all(self._directory):
            claim = place.claim()
            if claim is None:
                continue
            restored = place.restored()
            found.append(
                ScratchFacts(
                    id=claim.id,
                    server=claim.server,
                    mark=claim.mark,
                    state=ScratchState.BROKEN if restored is None else ScratchState.STOPPED,
                    restored=restored,
                    made_at=claim.made_at,
                    expires_at=claim.expires_at,
                )
            )
        return found
