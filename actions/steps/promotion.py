"""Steps that make a scratch instance the primary: opened, the old one closed for good, then promoted.

Until the promotion everything can be put back. After it nothing is put back by itself: the old primary must never take
writes again beside the new one.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable
from datetime import timedelta
from typing import Literal, TypeVar

from pydantic import Field

from actions.backup.physical import ScratchFacts, ScratchState
from actions.contract import Kept, Precondition, Probe, Step
from actions.engines import engine_of
from actions.errors import DrError, PermanentError, TemporaryError, VerificationError
from actions.ports import FenceFacts, Ports, Progress, Pulse
from actions.site import Frozen
from actions.steps import byhand
from actions.steps.naming import is_quarantined
from actions.steps.phrases import counted, names
from actions.steps.scratch import here, instance

T = TypeVar("T")

ASKED = timedelta(seconds=20)
"""How long a promotion waits for an answer of a server or an archive that may be half dead."""


class OpenScratch(Step):
    """Applications can log in at an address of its own; it is still read only."""

    kind: Literal["open_scratch"] = "open_scratch"
    timeout: timedelta = timedelta(minutes=30)
    undo_on_failure: bool = True
    scratch: str
    host: str
    port: int

    @property
    def _address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def summary(self) -> str:
        return f"Start `scratch-{self.scratch}` with production's configuration, for applications at {self._address}"

    @property
    def before(self) -> str:
        return "nobody but the bot can log in"

    @property
    def after(self) -> str:
        return "paused and read only as before; production is not touched yet"

    def by_hand(self) -> tuple[str, ...]:
        return (
            'pg_ctl stop -D "$PGDATA"',
            'cp "$PGDATA/pg_hba.conf.production" "$PGDATA/pg_hba.conf"  # and postgresql.conf, as far as it fits here',
            'echo "archive_mode = off" >> "$PGDATA/postgresql.conf"  # and keep the recovery_target_* lines',
            f'pg_ctl start -w -D "$PGDATA" -o "-p {self.port}"',
        )

    async def probe(self, ports: Ports) -> Probe:
        found = await here(ports, self.scratch)
        if found.state is ScratchState.PROMOTED:
            return Probe.DONE
        return Probe.DONE if found.opened and found.address == self._address else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - one start
        await ports.scratch.open(self.scratch, host=self.host, port=self.port)

    async def verify(self, ports: Ports) -> None:
        found = await instance(ports, self.scratch)
        if found.state is ScratchState.PROMOTED:
            return
        if found.address != self._address:
            raise VerificationError(f"`{found.name}` is at {found.address or 'no address'}, not at {self._address}.")

    async def undo(self, ports: Ports) -> None:
        await refuse_once_promoted(ports, self.scratch)
        if await ports.scratch.find(self.scratch) is not None:
            await ports.scratch.shut(self.scratch)

    def undo_by_hand(self) -> tuple[str, ...]:
        return ('pg_ctl stop -D "$PGDATA"',)


class Fenced(Frozen):
    """A database of the old primary as it was when the plan was made."""

    name: str
    opened: bool


class FencePrimary(Step):
    """Nothing can write to the old primary, and it is kept as it is."""

    kind: Literal["fence_primary"] = "fence_primary"
    timeout: timedelta = timedelta(minutes=5)
    undo_on_failure: bool = True
    server: str
    scratch: str  # that takes its place
    databases: tuple[Fenced, ...]
    home: str  # the administrator's own database, which stays open to administrators
    limit: int  # of connections to it
    dead: bool  # the request says so: it does not answer, and never comes back by itself

    @property
    def summary(self) -> str:
        if self.dead:
            return f"See once more that the old primary `{self.server}` does not answer"
        return (
            f"Close the old primary `{self.server}` for good: {counted(len(self.databases), 'database')} refused to "
            "everybody but administrators, every session ended, transactions read only over restarts"
        )

    @property
    def before(self) -> str:
        if self.dead:
            return "declared dead by whoever asked for this"
        return f"{names(item.name for item in self.databases if item.opened) or 'no database'} open"

    @property
    def after(self) -> str:
        if self.dead:
            return "no promotion if it answers"
        return "it takes no writes, proven by its own word; its data is kept untouched"

    def by_hand(self) -> tuple[str, ...]:
        if self.dead:
            return (byhand.psql(self.server, "SELECT 'must fail, from everywhere'"),)
        lines = [
            byhand.psql(self.server, "ALTER SYSTEM SET default_transaction_read_only = on"),
            byhand.psql(self.server, "SELECT pg_reload_conf()"),
        ]
        for item in self.databases:
            closed = byhand.allow_connections(item.name, allowed=False)
            if item.name == self.home:
                closed = byhand.limit_connections(item.name, 0)
            lines += [byhand.psql(self.server, closed), byhand.psql(self.server, byhand.end_sessions(item.name))]
        return tuple(lines)

    async def probe(self, ports: Ports) -> Probe:
        if self.dead:
            return Probe.TODO  # what was true a minute ago proves nothing
        return Probe.DONE if (await ports.postgres.fencing(self.server)).holds else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - seconds
        if not self.dead:
            await ports.postgres.fence(self.server)

    async def verify(self, ports: Ports) -> None:
        if self.dead:
            if (why := await _answers(ports, self.server)) is not None:
                raise VerificationError(why)
            return
        found = await ports.postgres.fencing(self.server)
        if not found.holds:
            raise VerificationError(f"`{self.server}` may still take writes: {left_open(found)}. Nothing is promoted.")

    async def undo(self, ports: Ports) -> None:
        await refuse_once_promoted(ports, self.scratch)
        if not self.dead:
            closed = {item.name for item in self.databases if not item.opened}
            # What another plan has set aside since this one was made was closed before it was fenced.
            aside = {found.name for found in await ports.postgres.databases(self.server) if is_quarantined(found.mark)}
            await ports.postgres.unfence(self.server, closed=tuple(sorted(closed | aside)), limit=self.limit)

    def undo_by_hand(self) -> tuple[str, ...]:
        if self.dead:
            return ()
        opened = [item.name for item in self.databases if item.opened and item.name != self.home]
        return (
            byhand.psql(self.server, byhand.limit_connections(self.home, self.limit)),
            *(byhand.psql(self.server, byhand.allow_connections(name, allowed=True)) for name in opened),
            byhand.psql(self.server, "ALTER SYSTEM RESET default_transaction_read_only"),
            byhand.psql(self.server, "SELECT pg_reload_conf()"),
        )

    async def undone(self, ports: Ports) -> None:
        if not self.dead:
            await super().undone(ports)


class PromoteScratch(Step):
    """The instance is a server of its own, on a new timeline id."""

    kind: Literal["promote_scratch"] = "promote_scratch"
    timeout: timedelta = timedelta(minutes=15)
    scratch: str
    server: str = ""  # of the plan file, whose place it takes
    timeline_id: int  # it was restored on
    # Left out where it is not so: a plan that was signed before it could be asked for keeps its digest.
    dead: bool = Field(default=False, exclude_if=operator.not_)  # the old primary does not answer, by the request
    taken: int = Field(default=0, exclude_if=operator.not_)  # the highest timeline id that is known of the server

    @property
    def summary(self) -> str:
        return f"Promote `scratch-{self.scratch}`: from now on it takes writes"

    @property
    def before(self) -> str:
        return f"read only, on timeline id {self.timeline_id}"

    @property
    def after(self) -> str:
        return "a primary on a new timeline id, which nothing removes any more"

    @property
    def keeps(self) -> Kept | None:
        if not self.server:
            return None  # a plan from before the step knew it
        return Kept(
            key=f"server/{self.server}/{self.scratch}",
            title=f"Former primary `{self.server}`, whose place `scratch-{self.scratch}` has taken",
            location=f"server `{self.server}` of the plan file, closed or dead; its data is kept",
        )

    def by_hand(self) -> tuple[str, ...]:
        return (byhand.psql(f"scratch-{self.scratch}", "SELECT pg_promote(true, 600)"),)

    async def probe(self, ports: Ports) -> Probe:
        found = await here(ports, self.scratch)
        return Probe.DONE if await serves(ports, found) else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - seconds
        found = await instance(ports, self.scratch)
        if self.server and found.state is not ScratchState.PROMOTED:
            # It was closed in an earlier step. A run may have been paused since, or asked people, for hours.
            await self._check_closed(ports)
        taken = await taken_timelines(ports, self.server) if self.server else 0
        await ports.scratch.promote(self.scratch, above=max(self.taken, taken))

    async def _check_closed(self, ports: Ports) -> None:
        if self.dead:
            if (why := await _answers(ports, self.server)) is not None:
                raise VerificationError(why)
            return
        if not await lives(ports, self.server):
            return  # it was closed over restarts
        found = await in_time(ports.postgres.fencing(self.server))
        if found is None:
            raise TemporaryError(
                f"The old primary `{self.server}` is there, and does not say whether it is still closed. Nothing is "
                "promoted. Power it off, then ask for the promotion again with `--old-primary-is-dead`."
            )
        if not found.read_only or found.open:
            raise VerificationError(
                f"The old primary `{self.server}` was closed and is not any more: {left_open(found)}. Nothing is "
                "promoted. Find out who opened it, then ask for the promotion again."
            )

    async def verify(self, ports: Ports) -> None:
        found = await instance(ports, self.scratch)
        if not await serves(ports, found):
            raise VerificationError(f"`{found.name}` does not take writes yet. Look at its log.")

    async def outcome(self, ports: Ports) -> str:
        found = await instance(ports, self.scratch)
        server = await ports.postgres.server(found.name)
        source = ports.site.servers.get(found.server)
        access = f"`{source.admin_dsn}`" if source is not None else "its `admin_dsn`"
        return (
            f"New primary at {found.address} on timeline id {server.timeline_id}, branched off timeline id "
            f"{self.timeline_id}. It archives nothing yet. Next: let {access} of server `{found.server}` in the plan "
            f"file name {found.address}, {_archiver(ports, found.server)}, then `/dr-backup base "
            f"{found.server} full`: until that is done, nothing written from now on can be restored."
        )


class StaysDead(Precondition):
    """The old primary does not answer, as the request says."""

    kind: Literal["stays_dead"] = "stays_dead"
    server: str

    @property
    def summary(self) -> str:
        return f"`{self.server}` does not answer; whoever asked says that it is dead and cannot come back by itself"

    @property
    def acts_on(self) -> str:
        return f"`{self.server}`, which does not answer and is said to be dead"

    async def violation(self, ports: Ports) -> str | None:
        return await _answers(ports, self.server)


async def taken_timelines(ports: Ports, server: str) -> int:
    """The highest timeline id that the server or its archive is known to have; 0 where neither answers in time. Another
    server on one of them would write WAL under names that are taken."""
    found = [0]
    facts = await in_time(ports.postgres.server(server))
    found += [] if facts is None else [facts.timeline_id]
    if server in ports.site.physical:
        found += [window.timeline_id for window in await in_time(ports.physical.windows(server)) or ()]
        found += [entry.manifest.timeline_id for entry in await in_time(ports.physical.catalogue(server)) or ()]
    return max(found)


async def in_time(asked: Awaitable[T]) -> T | None:
    """What is answered within `ASKED`; None where it is not, or is refused. A server whose disk hangs takes logins and
    never answers."""
    try:
        async with asyncio.timeout(ASKED.total_seconds()):
            return await asked
    except (DrError, TimeoutError):
        return None


async def serves(ports: Ports, found: ScratchFacts) -> bool:
    """Whether a promoted instance runs and takes writes. The note that it was promoted is written before it is."""
    if found.state is not ScratchState.PROMOTED or not found.address:
        return False
    try:
        return not (await ports.postgres.server(found.name)).in_recovery
    except TemporaryError:
        return False


async def refuse_once_promoted(ports: Ports, scratch: str) -> None:
    """Raise PermanentError when the instance is the primary, or may become it at any moment."""
    found = await ports.scratch.find(scratch)
    if found is not None and found.state is ScratchState.PROMOTED:
        raise PermanentError(
            f"`{found.name}` was promoted, so nothing is put back: the old primary stays closed. Put right what is "
            "named first, leave this run (`/dr run leave`), then ask for the promotion again; it goes on from here."
        )


def _archiver(ports: Ports, server: str) -> str:
    """What makes the new primary's WAL go into the archive again."""
    policy = ports.site.physical.get(server)
    return "archive its WAL" if policy is None else engine_of(policy).archive_again(policy)


async def lives(ports: Ports, server: str) -> bool:
    """Whether a server is there at all. One that has no free connection, refuses a login, starts or shuts down takes
    writes, or soon may: only where nothing listens, or no way leads, is there none."""
    return await ports.postgres.pulse(server) not in (Pulse.SILENT, Pulse.UNREACHABLE)


async def _answers(ports: Ports, server: str) -> str | None:
    if not await lives(ports, server):
        return None
    return f"`{server}` answers again. Ask anew without `--old-primary-is-dead`, so that it is closed first."


def left_open(found: FenceFacts) -> str:
    """What lets it still take writes, in words."""
    left = [] if found.read_only else ["its transactions are not read only"]
    if found.open:
        left.append(f"{names(found.open)} open")
    if found.sessions:
        who = f" ({', '.join(found.workers)})" if found.workers else ""
        left.append(f"{counted(found.sessions, 'session')}{who}")
    return ", ".join(left)
