"""Scratch instances on this machine: PostgreSQL servers in folders of their own, read only until they are promoted.

A running one outlives this process and is found again by its folder, which also tells when it may go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import psycopg

from actions.adapters.postmaster import READY, Postmaster
from actions.adapters.scratch_config import KEPT
from actions.adapters.scratch_server import RecoveringServer, ScratchPrograms
from actions.adapters.scratch_standby import ScratchStandby, told
from actions.adapters.serving_config import end_recovery, half_open, serving, take_back, write_serving
from actions.backup.physical import Check, Lsn, RecoveryTarget, ScratchFacts, ScratchRestored, ScratchState, Serving
from actions.backup.scratch_budget import RESERVE, check_machine
from actions.backup.scratch_place import Opened, Promotion, ScratchPlace
from actions.backup.segments import history_name
from actions.backup.standby import alone
from actions.errors import DrError, PermanentError, TemporaryError, UserError
from actions.ports import Clock, Progress, Scratch, Wanted, no_progress
from actions.site import Site

log = logging.getLogger(__name__)

PROMOTION = timedelta(minutes=5)
LOOK = 0.1  # seconds
MOST_TIMELINES = 1000
JUNK_AFTER = timedelta(hours=1)  # a folder without a claim: a restore writes it within seconds


class ScratchInstances(Scratch):
    """Those of one directory, which is on the volume that restores write to."""

    def __init__(self, site: Site, directory: Path, clock: Clock, *, reserve: int = RESERVE) -> None:
        """`reserve` are bytes of the disk that stay free."""
        self._directory, self._clock = directory, clock
        self._budget, self._reserve = site.scratch, reserve
        self._programs = ScratchPrograms(site)
        self._standby = ScratchStandby(self._programs, clock, lifetime=site.scratch.lifetime)

    async def instances(self) -> Sequence[ScratchFacts]:
        found = await asyncio.to_thread(self._instances)
        return [await self._standby.seen(ScratchPlace(self._directory, facts.id), facts) for facts in found]

    async def find(self, scratch: str) -> ScratchFacts | None:
        facts = await asyncio.to_thread(_facts, ScratchPlace(self._directory, scratch))
        return None if facts is None else await self._standby.seen(ScratchPlace(self._directory, scratch), facts)

    async def start(self, scratch: str) -> ScratchFacts:
        place, facts = await self._known(scratch)
        await asyncio.to_thread(place.check_here, self._clock.now())
        if facts.loaded is not None:
            if not facts.address:
                server = await self._programs.server(place)
                await asyncio.to_thread(server.launch, detached=True)
                await self._until_writable(server)
            return (await self._known(scratch))[1]
        if facts.restored is None:
            raise UserError(f"The restore of scratch instance `{scratch}` did not end well. Discard it, then restore.")
        if facts.following is not None:
            await self._standby.tend(place)
        elif not facts.address:
            if facts.state is ScratchState.PROMOTED:
                await self._started_as_server(place, facts.restored)
            else:
                if not facts.opened:
                    await asyncio.to_thread(take_back, place.data)  # of an opening that was broken off
                await self._started_at_rest(place, facts.restored)
        return (await self._known(scratch))[1]

    async def follow(self, scratch: str, *, delay: timedelta) -> ScratchFacts:
        place, facts = await self._known(scratch)
        await asyncio.to_thread(place.check_here, self._clock.now())
        _check_moment(facts)
        if facts.restored is None or facts.opened or facts.state is ScratchState.PROMOTED:
            raise UserError(f"`{facts.name}` is {facts.state} or opened, so it cannot follow. Restore another one.")
        await self._standby.follow(place, facts.restored, delay)
        return (await self._known(scratch))[1]

    async def tend(self, scratch: str) -> ScratchFacts:
        place, _ = await self._known(scratch)
        await asyncio.to_thread(place.check_here, self._clock.now())
        await self._standby.tend(place)
        return (await self._known(scratch))[1]

    async def halt(self, scratch: str, target: RecoveryTarget, progress: Progress = no_progress) -> ScratchFacts:
        place, facts = await self._known(scratch)
        await asyncio.to_thread(place.check_here, self._clock.now())
        if facts.restored is None:
            raise UserError(f"The restore of scratch instance `{scratch}` did not end well. Discard it, then restore.")
        await self._standby.halt(place, facts.restored, target, progress)
        return (await self._known(scratch))[1]

    async def judge(self, scratch: str, database: str, check: Check) -> None:
        place, _ = await self._known(scratch)
        await asyncio.to_thread(place.write_check, database, check)

    async def serving(self, scratch: str) -> Serving:
        place, _ = await self._known(scratch)
        server = await self._programs.server(place)
        return await asyncio.to_thread(serving, place.data, tls=server.speaks_tls)

    async def open(self, scratch: str, *, host: str, port: int) -> ScratchFacts:
        place, facts = await self._known(scratch)
        await asyncio.to_thread(place.check_here, self._clock.now())
        _check_moment(facts)
        wanted = Opened(host=host, port=port)
        if facts.opened and facts.address == f"{host}:{port}":
            return facts
        if facts.restored is None or facts.state in (ScratchState.PROMOTED, ScratchState.FOLLOWING):
            raise UserError(f"Scratch instance `{scratch}` shows no moment, so it is not opened anew.")
        server = await self._programs.server(place)
        await asyncio.to_thread(server.stop)
        try:
            await asyncio.to_thread(_configure, server, wanted)
            await self._started_at_rest(place, facts.restored)
            await asyncio.to_thread(_reach, wanted)
        except (DrError, OSError) as error:
            said = await asyncio.to_thread(_fatal, server)
            await self._shut(place, facts.restored)
            raise UserError(
                f"Scratch instance `{scratch}` does not serve at {host}:{port} with production's configuration "
                f"({said or error}). It stands as before; correct its `*.conf{KEPT}` in `{place.data}`, or "
                "`advertised_host` in the plan file, then try again."
            ) from error
        return (await self._known(scratch))[1]

    async def shut(self, scratch: str) -> None:
        place, facts = await self._known(scratch)
        if facts.restored is None or facts.state is ScratchState.PROMOTED:
            return
        if not facts.opened and not await asyncio.to_thread(half_open, place.data):
            return
        await asyncio.to_thread(place.check_here, self._clock.now())
        await self._shut(place, facts.restored)

    async def promote(self, scratch: str, *, above: int = 0) -> ScratchFacts:
        place, facts = await self._known(scratch)
        _check_moment(facts)
        if facts.following is not None:
            raise UserError(f"`{facts.name}` follows. Stop it at a moment first: `/dr-restore halt {scratch}`.")
        if not facts.address:
            facts = await self.start(scratch)
        server = await self._programs.server(place)
        if await asyncio.to_thread(server.in_recovery) is not False:
            await self._at_rest(server, facts)
            await asyncio.to_thread(_take, server, above)
            # Written before: whatever dies now, nobody takes it for something that may be removed.
            await asyncio.to_thread(self._mark_promoted, place)
            await asyncio.to_thread(_promote, server)
            await self._until_writable(server)
        await asyncio.to_thread(_end_recovery, server)
        return (await self._known(scratch))[1]

    async def stop(self, scratch: str) -> None:
        place, _ = await self._known(scratch)
        await asyncio.to_thread(place.check_here, self._clock.now())
        server = await self._programs.server(place)
        await asyncio.to_thread(server.stop)

    async def discard(self, scratch: str, *, mark: str) -> None:
        place = ScratchPlace(self._directory, scratch)
        facts = await asyncio.to_thread(_facts, place)
        if facts is None:
            await asyncio.to_thread(place.remove)
            return
        if facts.mark != mark:
            raise UserError(f"Scratch instance `{scratch}` was made by another plan. Discard it by that one's mark.")
        if facts.state is ScratchState.PROMOTED:
            raise UserError(
                f"Scratch instance `{scratch}` was promoted: it is a server of its own and is never removed from here."
            )
        if facts.state is ScratchState.RESTORING:
            raise UserError(f"A restore is at work in scratch instance `{scratch}`. Stop its run first.")
        await asyncio.to_thread(place.check_here, self._clock.now())
        if facts.state is not ScratchState.FOLLOWING:
            await self._removed(place)
            return
        async with alone(place):  # whoever tends it would start it again in the folder that goes
            await self._removed(place)

    async def removed(self, scratch: str) -> bool:
        return await asyncio.to_thread(lambda: ScratchPlace(self._directory, scratch).removed)

    async def lacking(self, wanted: int) -> str:
        try:
            await asyncio.to_thread(check_machine, self._directory, wanted, self._budget, self._reserve)
        except UserError as error:
            return str(error)
        return ""

    async def sweep(self, wanted: Wanted) -> Sequence[ScratchFacts]:
        await asyncio.to_thread(self._hold)
        gone = []
        for facts in await self.instances():
            try:
                if await self._swept(ScratchPlace(self._directory, facts.id), wanted):
                    gone.append(facts)
            except (DrError, OSError) as error:  # the others may be what fills the disk; and what is gone is told
                log.warning("scratch_not_swept: %s: %s", facts.id, error)
        await asyncio.to_thread(self._sweep_junk)
        return gone

    async def _swept(self, place: ScratchPlace, wanted: Wanted) -> bool:
        """Remove it if it may go, by what is true once nobody else can work in it."""
        if not await asyncio.to_thread(self._due, place):
            return False
        with contextlib.ExitStack() as stack:
            try:
                await asyncio.to_thread(stack.enter_context, place.held())
            except UserError:
                return False  # a restore is at work in it
            if await wanted(place.folder.name) or await self._in_use(place):
                return False
            if not await asyncio.to_thread(self._due, place):
                return False
            await self._removed(place)
        return True

    def _due(self, place: ScratchPlace) -> bool:
        claim, now = place.claim(), self._clock.now()
        if claim is None or place.promoted or place.follow() is not None or place.elsewhere(now) is not None:
            return False
        return not place.whole or ScratchPlace.expired(claim, now)

    def _hold(self) -> None:
        """Say of every one that runs here that it does."""
        for place in ScratchPlace.all(self._directory):
            if Postmaster(place.data).process() is not None and place.elsewhere(self._clock.now()) is None:
                try:
                    place.write_holder(self._clock.now())
                except DrError as error:
                    log.warning("scratch_not_held: %s: %s", place.folder, error)

    # ------------------------------------------------------------ parts

    async def _known(self, scratch: str) -> tuple[ScratchPlace, ScratchFacts]:
        place = ScratchPlace(self._directory, scratch)
        facts = await self.find(scratch)
        if facts is None:
            raise UserError(f"There is no scratch instance `{scratch}` on this machine. Restore it again.")
        return place, facts

    async def _started_at_rest(self, place: ScratchPlace, restored: ScratchRestored) -> None:
        follows = await asyncio.to_thread((place.data / "standby.signal").exists)
        target = RecoveryTarget(latest=True) if follows else restored.target
        await self._programs.start(place, target, Lsn.parse(restored.reached_lsn))

    async def _started_as_server(self, place: ScratchPlace, restored: ScratchRestored) -> None:
        server = await self._programs.server(place)
        if await asyncio.to_thread(lambda: server.recovers):
            # Its promotion was broken off. It replays again, and must be back at its target before that is taken up.
            await self._started_at_rest(place, restored)
            await asyncio.to_thread(_promote, server)
        else:
            await asyncio.to_thread(server.launch, detached=True)
        await self._until_writable(server)
        await asyncio.to_thread(_end_recovery, server)

    async def _shut(self, place: ScratchPlace, restored: ScratchRestored) -> None:
        server = await self._programs.server(place)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(take_back, place.data)
        await asyncio.to_thread(place.write_opened, None)
        await self._started_at_rest(place, restored)

    async def _at_rest(self, server: RecoveringServer, facts: ScratchFacts) -> None:
        """Return once it is where its restore came to rest; whoever started it may have died before it was there."""
        limit = time.monotonic() + PROMOTION.total_seconds()
        reached = Lsn.parse(facts.restored.reached_lsn) if facts.restored is not None else Lsn(0)
        while not await asyncio.to_thread(server.rests, reached):
            if time.monotonic() > limit:
                raise TemporaryError(f"`{facts.name}` is not at {reached} again after {PROMOTION}; try again.")
            await asyncio.sleep(LOOK)

    async def _until_writable(self, server: RecoveringServer) -> None:
        limit = time.monotonic() + PROMOTION.total_seconds()
        while await asyncio.to_thread(server.in_recovery) is not False:
            if server.ended():
                raise PermanentError(
                    f"`{server.place.folder.name}` does not run as a server; see `{server.place.log}`."
                )
            if time.monotonic() > limit:
                raise TemporaryError(
                    f"Scratch instance `{server.place.folder.name}` was not ready after {PROMOTION}; see "
                    f"`{server.place.log}`, then try again."
                )
            await asyncio.sleep(LOOK)

    def _mark_promoted(self, place: ScratchPlace) -> None:
        with place.held():
            place.write_promoted(Promotion(at=self._clock.now()))

    async def _in_use(self, place: ScratchPlace) -> bool:
        """Whether somebody is logged in: a dump of it may be running. Where that cannot be asked, somebody is."""
        if Postmaster(place.data).process() is None:
            return False

        def sessions() -> int:
            with server.connect() as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                ).fetchone()
                return int(str(row[0])) if row else 0

        try:
            server = await self._programs.server(place)
            return await asyncio.to_thread(sessions) > 0
        except (psycopg.OperationalError, UserError) as error:
            log.warning("scratch_not_asked: %s: %s", place.folder, error)
            return True

    async def _removed(self, place: ScratchPlace) -> None:
        server = await self._programs.server(place)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(place.remove)

    def _instances(self) -> list[ScratchFacts]:
        found = [_facts(place) for place in ScratchPlace.all(self._directory)]
        return [facts for facts in found if facts is not None]

    def _sweep_junk(self) -> None:
        ScratchPlace.remove_rest(self._directory)
        for place in ScratchPlace.all(self._directory):
            if place.claim() is None and not place.promoted and not place.busy():
                with contextlib.suppress(FileNotFoundError):  # it goes this moment
                    age = self._clock.now().timestamp() - place.folder.stat().st_mtime
                    if age > JUNK_AFTER.total_seconds():
                        log.warning("scratch_folder_without_claim_removed: %s", place.folder)
                        place.remove()


def _take(server: RecoveringServer, above: int) -> None:
    """Let it find a history of every timeline id up to `above`: it takes the one after those that it finds, and knows
    nothing of what the archive has gained since it was restored. Nobody reads what is in them."""
    restored = server.place.restored()
    first = 1 if restored is None else restored.timeline_id + 1
    # No server was promoted so often: whoever holds a repository can name any number, and must not fill the disk by it.
    for number in range(first, min(above, first + MOST_TIMELINES) + 1):
        path = server.place.wal / history_name(number)
        if not path.exists():
            path.write_text(f"# timeline id {number} is taken\n")
            server.own(path)


def _promote(server: RecoveringServer) -> None:
    with server.connect() as connection:
        connection.execute("SELECT pg_promote(wait => false)")


def _end_recovery(server: RecoveringServer) -> None:
    path = end_recovery(server.place.data)
    if path is not None:
        server.own(path)
        with server.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")


def _configure(server: RecoveringServer, opened: Opened) -> None:
    place, claim = server.place, server.place.claim()
    take_back(place.data)  # of a try that was broken off
    plan = serving(place.data, tls=server.speaks_tls)
    superuser = claim.superuser if claim is not None else "postgres"
    server.own(*write_serving(place.data, host=opened.host, superuser=superuser, plan=plan))
    place.write_opened(opened)


def _reach(opened: Opened) -> None:
    with socket.create_connection((opened.host, opened.port), timeout=5):
        pass


def _fatal(server: RecoveringServer) -> str:
    return next((line.partition("FATAL:  ")[2] for line in server.said().splitlines()[::-1] if "FATAL:  " in line), "")


def _facts(place: ScratchPlace) -> ScratchFacts | None:
    claim = place.claim()
    if claim is None:
        return None
    restored, server, opened, following = place.restored(), Postmaster(place.data), place.opened(), told(place)
    status, port = server.status(), server.port()
    host = "127.0.0.1" if opened is None else opened.host
    return ScratchFacts(
        id=claim.id,
        server=claim.server,
        mark=claim.mark,
        state=_state(place, status),
        restored=restored,
        loaded=place.loaded(),
        address=f"{host}:{port}" if status == READY and port else "",
        system_id=claim.system_id,
        bytes=claim.wanted_bytes + (0 if following is None else place.wal_bytes()),
        made_at=claim.made_at,
        expires_at=claim.expires_at,
        opened=opened is not None,
        following=following,
        checks=place.checks(),
    )


def _check_moment(facts: ScratchFacts) -> None:
    if facts.loaded is not None:
        raise UserError(f"`{facts.name}` holds a dump for a restore test, no moment of a server. Restore one first.")


def _state(place: ScratchPlace, status: str) -> ScratchState:
    if place.promoted:
        return ScratchState.PROMOTED
    if place.follow() is not None:
        return ScratchState.FOLLOWING
    if place.loaded() is not None:
        return ScratchState.LOADED
    if place.restored() is None:
        return ScratchState.RESTORING if place.busy() else ScratchState.BROKEN
    return ScratchState.PAUSED if status == READY else ScratchState.STOPPED
