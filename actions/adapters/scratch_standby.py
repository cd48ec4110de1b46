"""A scratch instance as a standby of the archive: it replays what was brought to its folder, until it is stopped at a
moment and becomes the restore."""

from __future__ import annotations

import asyncio
import shlex
import time
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from actions.adapters.postgres_physical import pages_checked
from actions.adapters.recovery_log import too_low, why_it_ended
from actions.adapters.scratch_server import WAITS_FOR_WAL, RecoveringServer, ScratchPrograms
from actions.backup.physical import Following, Lsn, RecoveryTarget, ScratchFacts, ScratchRestored, Waiting
from actions.backup.physical_tools import DamagedError, Reached, Replay
from actions.backup.scratch_place import Follow, ScratchPlace
from actions.backup.scratch_restore import replayed, timeline_at
from actions.backup.standby import alone
from actions.backup.wal_coming import copying_from
from actions.errors import DrError, TemporaryError, UserError, VerificationError
from actions.ports import Clock, Progress, ProgressReport

LOOK = 0.1  # seconds
READY_WITHIN = timedelta(minutes=5)
_WAITS = {WAITS_FOR_WAL: Waiting.WAL, "RecoveryApplyDelay": Waiting.DELAY}


class ScratchStandby:
    """Those of one directory. `lifetime`: how long one stays once it was stopped at a moment."""

    def __init__(self, programs: ScratchPrograms, clock: Clock, *, lifetime: timedelta) -> None:
        self._programs, self._clock, self._lifetime = programs, clock, lifetime

    async def seen(self, place: ScratchPlace, facts: ScratchFacts) -> ScratchFacts:
        """With how far its replay is, as the server itself says."""
        if facts.following is None or not facts.address:
            return facts
        server = await self._programs.server(place)
        state = await asyncio.to_thread(server.replay_state)
        if state is None:
            return facts
        lsn, at, waits = state
        changes = {"replayed_lsn": str(lsn), "replayed_at": at or facts.following.replayed_at}
        following = facts.following.model_copy(update={**changes, "waits": _WAITS.get(waits)})
        return facts.model_copy(update={"following": following})

    async def follow(self, place: ScratchPlace, restored: ScratchRestored, delay: timedelta) -> None:
        async with alone(place):
            server = await self._programs.server(place)
            known = await asyncio.to_thread(place.follow)
            if known is None or known.delay != delay or known.halting is not None:
                await asyncio.to_thread(server.stop)
                if known is None:
                    known = await asyncio.to_thread(self._begun, server, restored)
                # Written before it runs: whoever finds it stopped from now on starts it again.
                known = known.model_copy(update={"delay": delay, "halting": None})
                await asyncio.to_thread(place.write_follow, known)
            await self._awake(server, known)

    def _begun(self, server: RecoveringServer, restored: ScratchRestored) -> Follow:
        return Follow(
            since=self._clock.now(),
            delay=timedelta(0),
            timeline_id=restored.timeline_id,
            lsn=restored.reached_lsn,
            segment_bytes=int(server.control()["Bytes per WAL segment"]),
            replayed_at=restored.reached_at,
            replayed_lsn=restored.reached_lsn,
        )

    async def tend(self, place: ScratchPlace) -> None:
        async with alone(place):
            follow = await asyncio.to_thread(place.follow)
            if follow is None or follow.halting is not None:
                return
            server = await self._programs.server(place)
            await asyncio.to_thread(server.own_wal)
            follow = await asyncio.to_thread(_noted, server, follow)
            await self._awake(server, follow)
            await asyncio.to_thread(_prune, server)

    async def _awake(self, server: RecoveringServer, follow: Follow) -> None:
        """Start it unless it runs; return once it answers. One that has much to replay first is left to it."""
        if await asyncio.to_thread(server.runs):
            return
        await asyncio.to_thread(_doubted, server, follow)
        await asyncio.to_thread(self._programs.configure, server, _order(server.place, follow), follow.raised)
        await asyncio.to_thread(server.launch, detached=True)
        limit = time.monotonic() + READY_WITHIN.total_seconds()
        while await asyncio.to_thread(server.replay_state) is None:
            if server.ended():
                raise why_it_ended(await asyncio.to_thread(server.said), RecoveryTarget(latest=True))
            if time.monotonic() > limit:
                name = server.place.folder.name
                raise TemporaryError(f"`scratch-{name}` replays and does not answer yet; see `{server.place.log}`.")
            await asyncio.sleep(LOOK)

    # ------------------------------------------------------------ the end of following

    async def halt(
        self, place: ScratchPlace, restored: ScratchRestored, target: RecoveryTarget, progress: Progress
    ) -> None:
        async with alone(place):
            follow = await asyncio.to_thread(place.follow)
            if follow is None:
                if restored.target == target:
                    return  # an earlier try of the same
                raise UserError(f"Scratch instance `{place.folder.name}` does not follow, so it cannot be stopped.")
            server = await self._programs.server(place)
            follow = await asyncio.to_thread(_noted, server, follow)
            if follow.halting != target:
                await self._check_ahead(server, follow, target)
                # Written before: whatever dies now, nobody lets it replay beyond the target.
                await asyncio.to_thread(place.write_follow, follow.model_copy(update={"halting": target}))
            await asyncio.to_thread(server.own_wal)
            await asyncio.to_thread(server.stop)
            try:
                if follow.halting != target:
                    await asyncio.to_thread(_check_on_disk, server, target)
                reached, damage = await self._reached(place, follow, target, progress)
            except TemporaryError:
                raise  # the next try finds it before the target still: what was harmed may be due to be replayed by now
            except DrError as error:
                await asyncio.to_thread(place.write_follow, follow.model_copy(update={"halting": None}))
                with suppress(DrError):  # whoever tends it starts it again
                    await self._awake(server, follow)
                raise UserError(f"`scratch-{restored.id}` cannot be stopped there, it follows on. {error}") from error
            # What was replayed for weeks is not what was checked once. Damage is no reason to let it replay beyond the
            # moment: single tables may come back from it.
            progress(ProgressReport(phase="check"))
            try:
                checked = await pages_checked(server.programs / "pg_checksums", place.data)
                without = not checked
            except VerificationError as error:
                checked, without, damage = False, False, f"{damage} {error}".strip()
            changes = {"checked_pages": checked, "without_checksums": without, "damage": damage}
            found = restored.model_copy(update=changes)
            await asyncio.to_thread(self._ended, place, follow, found, target, reached)

    async def _check_ahead(self, server: RecoveringServer, follow: Follow, target: RecoveryTarget) -> None:
        state = await asyncio.to_thread(server.replay_state)
        # Where one that does not run has come to on disk, PostgreSQL knows, and refuses by itself.
        lsn = "" if state is None else str(state[0])
        # A server that was started again does not remember its last commit; the note does.
        seen = Following(delay=follow.delay, since=follow.since, replayed_lsn=lsn, replayed_at=follow.replayed_at)
        if seen.past(target):
            raise _beyond(server, target)
        if target.time is not None and await asyncio.to_thread(_unsure, server, follow, state):
            raise UserError(
                f"Nobody can tell which commit `scratch-{server.place.folder.name}` has replayed last: it was started "
                "again since it was seen, and none has come. Name the moment with `--lsn`, or restore from a base "
                "backup with `/dr-restore`; it follows on."
            )

    async def _reached(
        self, place: ScratchPlace, follow: Follow, target: RecoveryTarget, progress: Progress
    ) -> tuple[Reached, str]:
        """Where it rests, and what its indexes have been found to be damaged in."""
        fed = await asyncio.to_thread(place.fed)
        order = Replay(
            target=target,
            timeline_id=target.timeline_id or (follow.timeline_id if fed is None else fed.way),
            start_lsn=follow.lsn,
            end_lsn=follow.lsn if fed is None else fed.end_lsn,
            restore_command=copying_from(place.wal),
            amcheck=await asyncio.to_thread(self._programs.compares_indexes, place),
        )
        newest = None if fed is None else fed.newest_at
        reaches = target.time is not None and newest is not None and newest > target.time
        try:
            return await replayed(self._programs, place, order, progress, reaches=reaches), ""
        except DamagedError as error:
            return error.reached, str(error)

    def _ended(
        self, place: ScratchPlace, follow: Follow, restored: ScratchRestored, target: RecoveryTarget, reached: Reached
    ) -> None:
        fed, claim = place.fed(), place.claim()
        way = target.timeline_id or (follow.timeline_id if fed is None else fed.way)
        changes = {
            "target": target,
            "reached_lsn": reached.lsn,
            "reached_at": reached.at or follow.replayed_at,
            "timeline_id": timeline_at(reached.place, way, place.wal),
            "checked_indexes": reached.checked_indexes,
        }
        place.write_restored(restored.model_copy(update=changes))
        place.forget_checks()  # of another moment
        if claim is not None:
            place.write_claim(claim.model_copy(update={"expires_at": self._clock.now() + self._lifetime}))
        place.drop_follow()


def told(place: ScratchPlace) -> Following | None:
    """As its folder says. Blocking."""
    follow, fed = place.follow(), place.fed()
    if follow is None:
        return None
    return Following(
        delay=follow.delay,
        since=follow.since,
        halting=follow.halting,
        fed_at=None if fed is None else fed.at,
        fed_lsn="" if fed is None else fed.end_lsn,
        problem="" if fed is None else fed.problem,
        stranded=fed is not None and fed.stranded,
        replayed_at=follow.replayed_at,
    )


def _order(place: ScratchPlace, follow: Follow) -> Replay:
    folder = shlex.quote(str(place.wal.absolute())).replace("%", "%%")
    return Replay(
        target=RecoveryTarget(latest=True),
        timeline_id=follow.timeline_id,
        start_lsn=follow.lsn,
        end_lsn=follow.lsn,
        # It asks again and again for what is not there yet, and for the open segment, of which it has a copy:
        # `cp` alone would fill the log with the one and the disk's time with the other.
        restore_command=f"test -f {folder}/%f && ! cmp -s {folder}/%f pg_wal/%f && cp {folder}/%f %p",
        follows=follow.delay,
    )


def _noted(server: RecoveringServer, follow: Follow) -> Follow:
    """What is kept for when it does not run; one whose primary has raised settings is stopped, to be started with
    them."""
    state = server.replay_state()
    raised = {**follow.raised, **too_low(server.said())} if server.runs() else follow.raised
    if raised != follow.raised:
        server.stop()
    changes: dict[str, object] = {"raised": raised}
    if state is not None and state[1] is not None:
        changes |= {"replayed_at": state[1], "replayed_lsn": str(state[0]), "unsure": False}
    noted = follow.model_copy(update=changes)
    if noted != follow:
        server.place.write_follow(noted)
    return noted


def _doubted(server: RecoveringServer, follow: Follow) -> None:
    """Note that it has gone on since its last commit was seen: a server that is started again tells of no commit before
    the next one."""
    if not follow.unsure and _unsure(server, follow, None):
        server.place.write_follow(follow.model_copy(update={"unsure": True}))


def _unsure(server: RecoveringServer, follow: Follow, state: tuple[Lsn, datetime | None, str] | None) -> bool:
    """Whether commits may be in it that nobody has seen. `state`: its own word; None where it does not run."""
    if state is not None:
        return follow.unsure and state[1] is None
    return follow.unsure or (bool(follow.replayed_lsn) and _on_disk(server) > Lsn.parse(follow.replayed_lsn))


def _check_on_disk(server: RecoveringServer, target: RecoveryTarget) -> None:
    """Of one that was not asked, or was not there to be asked: a recovery that begins beyond its target stops at once,
    and says that it has reached it."""
    if target.lsn is not None and _on_disk(server) > Lsn.parse(target.lsn):
        raise _beyond(server, target)


def _on_disk(server: RecoveringServer) -> Lsn:
    """How far it has replayed at least."""
    control = server.control()
    names = ("Minimum recovery ending location", "Latest checkpoint location")
    return max(Lsn.parse(control[name]) for name in names)


def _beyond(server: RecoveringServer, target: RecoveryTarget) -> UserError:
    return UserError(
        f"`scratch-{server.place.folder.name}` has replayed beyond {target}, and a replay never goes back. "
        "Restore from a base backup with `/dr-restore`; it follows on."
    )


def _prune(server: RecoveringServer) -> None:
    """Remove segments from before the place that it would begin at after a crash."""
    redo = server.control()["Latest checkpoint's REDO WAL file"]
    for path in server.place.wal.iterdir():
        if _is_segment(path) and path.name[8:] < redo[8:]:
            path.unlink()


def _is_segment(path: Path) -> bool:
    return len(path.name) == len("000000010000000000000001") and "." not in path.name
