"""Steps on a live database: close it, and swap a copy in by renaming."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from actions.backup.manifest import Globals
from actions.contract import Kept, Probe, Step
from actions.errors import PreconditionError, VerificationError
from actions.ports import DatabaseFacts, Named, Ports, Progress
from actions.site import DatabaseRef
from actions.steps import byhand


class CloseDatabase(Step):
    """New connections refused, sessions ended and counted to zero."""

    kind: Literal["close_database"] = "close_database"
    timeout: timedelta = timedelta(minutes=3)
    undo_on_failure: bool = True
    target: DatabaseRef
    oid: int
    was_open: bool

    @property
    def summary(self) -> str:
        return f"Close database `{self.target}`: refuse new connections, end every session"

    @property
    def before(self) -> str:
        return "open for connections" if self.was_open else "closed for connections"

    @property
    def after(self) -> str:
        return "closed, 0 sessions"

    def by_hand(self) -> tuple[str, ...]:
        server, name = self.target
        return (
            byhand.psql(server, byhand.allow_connections(name, allowed=False)),
            byhand.psql(server, byhand.end_sessions(name)),
            byhand.psql(server, byhand.count_sessions(name)),
        )

    async def probe(self, ports: Ports) -> Probe:
        facts = await ports.postgres.database(self.target)
        if facts is None or facts.oid != self.oid:
            return Probe.UNKNOWN  # not the database that was signed for
        return Probe.DONE if not facts.allows_connections and facts.sessions == 0 else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - seconds, without figures
        await ports.postgres.close(self.target)

    async def verify(self, ports: Ports) -> None:
        facts = await ports.postgres.database(self.target)
        if facts is None or facts.allows_connections or facts.sessions:
            left = "it is gone" if facts is None else f"{facts.sessions} session(s) are still there"
            raise VerificationError(f"Database `{self.target}` is not closed: {left}. Look for who connects to it.")
        if facts.oid != self.oid:
            raise VerificationError(
                f"`{self.target}` is another database now (oid {facts.oid}, signed was {self.oid}). Find out who "
                "renamed it; it is closed, open it with `ALTER DATABASE ... ALLOW_CONNECTIONS true`."
            )

    async def undo(self, ports: Ports) -> None:
        facts = await ports.postgres.database(self.target)
        if self.was_open and facts is not None and facts.oid == self.oid:
            await ports.postgres.open(self.target)

    def undo_by_hand(self) -> tuple[str, ...]:
        return (byhand.psql(self.target.server, byhand.allow_connections(self.target.name, allowed=self.was_open)),)

    async def undone(self, ports: Ports) -> None:
        if self.was_open:
            await super().undone(ports)


class SwapDatabases(Step):
    """The proven copy under production's name, the old database set aside, in one transaction."""

    kind: Literal["swap_databases"] = "swap_databases"
    timeout: timedelta = timedelta(minutes=3)
    undo_on_failure: bool = True
    server: str
    current: str
    copy_name: str
    aside: str
    old_oid: int
    old_mark: str = ""  # what the old database is given back when it is swapped in again
    mark: str  # of the database set aside
    copy_mark: str
    live_mark: str  # of the copy once it has production's name

    @property
    def summary(self) -> str:
        return (
            f"Swap on `{self.server}`: `{self.current}` becomes `{self.aside}`, "
            f"`{self.copy_name}` becomes `{self.current}`"
        )

    @property
    def before(self) -> str:
        return f"`{self.current}` is the database with oid {self.old_oid}"

    @property
    def after(self) -> str:
        return f"`{self.current}` is the restored copy; the old one is kept, closed, as `{self.aside}`"

    @property
    def keeps(self) -> Kept:
        return Kept(
            key=f"database/{self.server}/{self.aside}",
            title=f"Database `{self.current}` of `{self.server}` as it was before the swap",
            location=f"database `{self.aside}` on server `{self.server}`, closed",
        )

    def by_hand(self) -> tuple[str, ...]:
        return (
            byhand.psql(self.server, byhand.end_sessions(self.copy_name)),
            byhand.psql(
                self.server, byhand.rename(self.current, self.aside), byhand.rename(self.copy_name, self.current)
            ),
            byhand.psql(self.server, byhand.allow_connections(self.current, allowed=True)),
        )

    async def probe(self, ports: Ports) -> Probe:
        current, copy, aside = await listed(ports, self.server, self.current, self.copy_name, self.aside)
        if self._swapped(current, aside) and copy is None:
            # Under production's name somebody may have put another one since.
            return Probe.DONE if current is not None and current.mark == self.live_mark else Probe.UNKNOWN
        before = current is not None and current.oid == self.old_oid
        if before and aside is None and copy is not None and copy.mark == self.copy_mark:
            return Probe.TODO
        return Probe.UNKNOWN

    def _swapped(self, current: DatabaseFacts | None, aside: DatabaseFacts | None) -> bool:
        return current is not None and aside is not None and aside.oid == self.old_oid

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - one short transaction
        # A worker that died while it measured the copy leaves a session there, which would hold up the rename.
        await ports.postgres.close(DatabaseRef(self.server, self.copy_name))
        await ports.postgres.swap(
            self.server,
            current=Named(self.current, self.old_oid),  # the one that was signed for
            replacement=await _marked(ports, DatabaseRef(self.server, self.copy_name), self.copy_mark),
            aside=self.aside,
            mark=self.mark,
            live_mark=self.live_mark,
        )

    async def verify(self, ports: Ports) -> None:
        current, _, aside = await listed(ports, self.server, self.current, self.copy_name, self.aside)
        if not self._swapped(current, aside) or current is None or not current.allows_connections:
            raise VerificationError(
                f"`{self.current}` on `{self.server}` is not the open restored copy. Compare the names with `psql -l`."
            )

    async def undo(self, ports: Ports) -> None:
        current, _, aside = await listed(ports, self.server, self.current, self.copy_name, self.aside)
        if not self._swapped(current, aside):
            return  # never happened, or put back before
        if current is None:
            return
        await ports.postgres.close(DatabaseRef(self.server, self.current))
        await ports.postgres.swap(
            self.server,
            current=Named(self.current, current.oid),
            replacement=Named(self.aside, self.old_oid),
            aside=self.copy_name,
            mark=self.copy_mark,
            live_mark=self.old_mark,
        )

    def undo_by_hand(self) -> tuple[str, ...]:
        return (
            byhand.psql(
                self.server, byhand.rename(self.current, self.copy_name), byhand.rename(self.aside, self.current)
            ),
            byhand.psql(self.server, byhand.allow_connections(self.current, allowed=True)),
        )


class GiveName(Step):
    """The proven copy under production's name where production is gone.

    The port renames two databases at once or none, so an empty placeholder stands in for the one that is missing: it
    holds the name the copy is to get, is set aside by the swap, and is removed before the step ends. Its scratch mark
    is its own, so that it is never taken for the copy.
    """

    kind: Literal["give_name"] = "give_name"
    timeout: timedelta = timedelta(minutes=3)
    undo_on_failure: bool = True
    server: str
    current: str
    copy_name: str
    aside: str  # name of the placeholder once it is set aside
    owner: str
    placeholder_mark: str
    copy_mark: str
    live_mark: str

    @property
    def summary(self) -> str:
        return f"Rename `{self.copy_name}` to `{self.current}` on `{self.server}`"

    @property
    def before(self) -> str:
        return f"no database `{self.current}`"

    @property
    def after(self) -> str:
        return f"`{self.current}` is the restored copy"

    def by_hand(self) -> tuple[str, ...]:
        return (byhand.psql(self.server, byhand.rename(self.copy_name, self.current)),)

    async def probe(self, ports: Ports) -> Probe:
        current, copy, aside = await listed(ports, self.server, self.current, self.copy_name, self.aside)
        if self._restored(current):
            return Probe.DONE if aside is None else Probe.TODO
        ours = current is None or current.mark == self.placeholder_mark
        if ours and copy is not None and copy.mark == self.copy_mark:
            return Probe.TODO
        return Probe.UNKNOWN  # somebody made a database of that name meanwhile, or the copy is gone

    def _restored(self, current: DatabaseFacts | None) -> bool:
        return current is not None and current.mark == self.live_mark

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - short statements
        current = await ports.postgres.database(DatabaseRef(self.server, self.current))
        if not self._restored(current):
            await self._rename(ports, self.copy_name, to=self.current, mark=self.live_mark)
        await self._remove_placeholder(ports, self.aside)

    async def _rename(self, ports: Ports, name: str, *, to: str, mark: str) -> None:
        """Safe to repeat: what is there already carries our marks."""
        placeholder = DatabaseRef(self.server, to)
        await ports.postgres.create(
            placeholder, owner=self.owner, cluster_globals=Globals(), mark=self.placeholder_mark
        )
        await ports.postgres.close(placeholder)
        await ports.postgres.close(DatabaseRef(self.server, name))
        await ports.postgres.swap(
            self.server,
            current=await _marked(ports, placeholder, self.placeholder_mark),
            replacement=await _marked(
                ports, DatabaseRef(self.server, name), self.copy_mark if mark == self.live_mark else self.live_mark
            ),
            aside=self.aside,
            mark=self.placeholder_mark,
            live_mark=mark,
        )

    async def _remove_placeholder(self, ports: Ports, name: str) -> None:
        ref = DatabaseRef(self.server, name)
        facts = await ports.postgres.database(ref)
        if facts is not None and facts.mark == self.placeholder_mark:
            await ports.postgres.discard(ref, mark=self.placeholder_mark)

    async def verify(self, ports: Ports) -> None:
        current = await ports.postgres.database(DatabaseRef(self.server, self.current))
        if current is None or not self._restored(current) or not current.allows_connections:
            raise VerificationError(
                f"`{self.current}` on `{self.server}` is not the open restored copy. Compare the names with `psql -l`."
            )

    async def undo(self, ports: Ports) -> None:
        current = await ports.postgres.database(DatabaseRef(self.server, self.current))
        await self._remove_placeholder(ports, self.aside)  # where `apply` stopped between its two halves
        if self._restored(current):
            await self._rename(ports, self.current, to=self.copy_name, mark=self.copy_mark)
        await self._remove_placeholder(ports, self.current)
        await self._remove_placeholder(ports, self.aside)

    def undo_by_hand(self) -> tuple[str, ...]:
        return (byhand.psql(self.server, byhand.rename(self.current, self.copy_name)),)


class MarkLive(Step):
    """The proven copy serves people under the name it was loaded with: nobody may take it for scratch any more."""

    kind: Literal["mark_live"] = "mark_live"
    undo_on_failure: bool = True
    target: DatabaseRef
    copy_mark: str
    live_mark: str

    @property
    def summary(self) -> str:
        return f"Mark `{self.target}` as live: from now on nothing may remove it as a scratch copy"

    @property
    def before(self) -> str:
        return f"a scratch copy, marked `{self.copy_mark}`"

    @property
    def after(self) -> str:
        return f"marked `{self.live_mark}`"

    def by_hand(self) -> tuple[str, ...]:
        return (byhand.psql(self.target.server, byhand.comment(self.target.name, self.live_mark)),)

    async def probe(self, ports: Ports) -> Probe:
        facts = await ports.postgres.database(self.target)
        marks = {self.copy_mark: Probe.TODO, self.live_mark: Probe.DONE}
        return Probe.UNKNOWN if facts is None else marks.get(facts.mark, Probe.UNKNOWN)

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - one short statement
        await ports.postgres.relabel(self.target, before=self.copy_mark, after=self.live_mark)

    async def verify(self, ports: Ports) -> None:
        if await self.probe(ports) is not Probe.DONE:
            raise VerificationError(
                f"`{self.target}` does not carry the mark `{self.live_mark}`. Look with `psql -l+`."
            )

    async def undo(self, ports: Ports) -> None:
        facts = await ports.postgres.database(self.target)
        if facts is not None and facts.mark == self.live_mark:
            await ports.postgres.relabel(self.target, before=self.live_mark, after=self.copy_mark)

    def undo_by_hand(self) -> tuple[str, ...]:
        return (byhand.psql(self.target.server, byhand.comment(self.target.name, self.copy_mark)),)


async def _marked(ports: Ports, ref: DatabaseRef, mark: str) -> Named:
    """This very database, which our mark is on. Raises PreconditionError when it is gone or another one."""
    found = await ports.postgres.database(ref)
    if found is None or found.mark != mark:
        has = "is gone" if found is None else f"carries the mark `{found.mark or 'none'}`, not `{mark}`"
        raise PreconditionError([f"`{ref}` {has}"])
    return Named(ref.name, found.oid)


async def listed(ports: Ports, server: str, *wanted: str) -> tuple[DatabaseFacts | None, ...]:
    """The databases of these names, as one listing shows them; None where there is none."""
    found = {facts.name: facts for facts in await ports.postgres.databases(server)}
    return tuple(found.get(name) for name in wanted)
