"""The physical engine of each server, as the plan file names it: `actions.engines` has them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actions.backup.physical import (
    BaseRequest,
    Expiry,
    FindRequest,
    Lack,
    Moment,
    NamedPoint,
    PhysicalEntry,
    Place,
    PlaceRequest,
    PointRequest,
    RecoveryWindow,
    ScratchRequest,
    ScratchRestored,
    Uncopied,
)
from actions.buckets import Hold
from actions.errors import UserError
from actions.ports import PhysicalBackups, Progress
from actions.site import Site


class PhysicalEngines(PhysicalBackups):
    """Hands every call to the engine of its server. Raises UserError for a server without base backups."""

    def __init__(self, site: Site, engines: Mapping[str, PhysicalBackups]) -> None:
        self._site = site
        self._engines = engines

    def _of(self, server: str) -> PhysicalBackups:
        kind = self._site.physical_of(server).engine
        if kind not in self._engines:
            raise UserError(f"The engine `{kind}` of server `{server}` is not available here. Use another in the plan.")
        return self._engines[kind]

    async def catalogue(self, server: str) -> Sequence[PhysicalEntry]:
        return await self._of(server).catalogue(server)

    async def windows(self, server: str) -> Sequence[RecoveryWindow]:
        return await self._of(server).windows(server)

    async def take(self, request: BaseRequest, progress: Progress) -> PhysicalEntry:
        return await self._of(request.server).take(request, progress)

    async def verify(self, server: str, backup: str, progress: Progress) -> PhysicalEntry:
        return await self._of(server).verify(server, backup, progress)

    async def copy(self, server: str, backup: str, progress: Progress) -> Sequence[str]:
        return await self._of(server).copy(server, backup, progress)

    async def uncopied(self, server: str) -> Uncopied:
        return await self._of(server).uncopied(server)

    async def restore(self, request: ScratchRequest, progress: Progress) -> ScratchRestored:
        return await self._of(request.server).restore(request, progress)

    async def feed(self, server: str, scratch: str) -> None:
        await self._of(server).feed(server, scratch)

    async def find(self, request: FindRequest, progress: Progress) -> Sequence[Moment]:
        return await self._of(request.server).find(request, progress)

    async def find_points(self, request: PointRequest, progress: Progress) -> Sequence[NamedPoint]:
        return await self._of(request.server).find_points(request, progress)

    async def find_places(self, request: PlaceRequest, progress: Progress) -> Sequence[Place]:
        return await self._of(request.server).find_places(request, progress)

    async def pin(self, server: str, backup: str, *, reason: str) -> None:
        await self._of(server).pin(server, backup, reason=reason)

    async def holds(self, server: str, backup: str) -> Sequence[Hold]:
        return await self._of(server).holds(server, backup)

    async def expiry(self, server: str) -> Expiry:
        return await self._of(server).expiry(server)

    async def expire(self, server: str, expiry: Expiry) -> None:
        await self._of(server).expire(server, expiry)

    async def remove(self, server: str, backup: str) -> None:
        await self._of(server).remove(server, backup)

    async def versions(self, server: str) -> Mapping[str, str]:
        return await self._of(server).versions(server)

    async def lacks(self, server: str) -> Sequence[Lack]:
        return await self._of(server).lacks(server)
