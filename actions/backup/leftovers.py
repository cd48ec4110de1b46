"""What loads and adoptions left on the servers because a server or a job died under them.

Found by the mark alone: `drbot:scratch:<plan>` on a database or on a short-lived role. Whether it may go depends on the
run of that plan. A copy that was loaded completely is no debris: people may want to look at it, so it is kept as long
as a quarantine; and whatever could be serving people is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from actions.errors import DrError
from actions.ports import JobPhase, Ports
from actions.site import DatabaseRef, Frozen, Site

SCRATCH = "drbot:scratch:"
UNFINISHED = "drbot_new_"  # a database that is being made, before it has its name

QUIET = timedelta(minutes=10)
"""How long it must have been seen unchanged and idle before it is removed."""

QUIET_UNKNOWN = timedelta(hours=24)
"""The same where nothing is known of the plan: another installation's, or one from before the memory was lost. A load
may take that long."""


class LeftoverKind(StrEnum):
    DATABASE = "database"
    ROLE = "role"


class Leftover(Frozen):
    """A database or role with a scratch mark, or one that is ours by its name and has no mark."""

    kind: LeftoverKind
    server: str
    name: str
    mark: str
    oid: int = 0
    sessions: int = 0

    @property
    def plan(self) -> str:
        """The plan that made it; empty when nothing says so."""
        return self.mark.rpartition(":")[2] if self.mark.startswith(SCRATCH) else ""

    @property
    def shown(self) -> str:
        return f"{self.kind} `{self.name}` on `{self.server}`"


class Story(Frozen):
    """What the bot's memory says of the plan that made it."""

    known: bool = False
    ended_at: datetime | None = None  # None: its run waits, runs, is paused or asks
    succeeded: bool = False
    whole: bool = False  # its copy was loaded completely
    jobs: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        return self.known and self.ended_at is not None


async def leftovers(ports: Ports) -> tuple[list[Leftover], list[str]]:
    """Everything with our scratch mark on every server that answers, databases first; and the servers that do not."""
    found: list[Leftover] = []
    silent: list[str] = []
    for server in sorted(ports.site.servers):
        try:
            found += await _on(ports, server)
        except DrError:
            silent.append(server)
    return found, silent


async def _on(ports: Ports, server: str) -> list[Leftover]:
    databases = [
        Leftover(
            kind=LeftoverKind.DATABASE,
            server=server,
            name=facts.name,
            mark=facts.mark,
            oid=facts.oid,
            sessions=facts.sessions,
        )
        for facts in await ports.postgres.databases(server)
        if facts.mark.startswith(SCRATCH) or (facts.name.startswith(UNFINISHED) and not facts.mark)
    ]
    roles = [
        Leftover(kind=LeftoverKind.ROLE, server=server, name=role.name, mark=role.mark, sessions=role.sessions)
        for role in await ports.postgres.loading_roles(server)
    ]
    return databases + roles


def reason_to_keep(item: Leftover, story: Story, site: Site, *, seen: datetime | None, now: datetime) -> str | None:
    """Why it is not removed now, as a sentence; None when it may go. `seen` is since when it was found like this."""
    if not item.plan:
        return "It has no mark that names its plan, so people decide. Drop it by hand when nobody works with it."
    if story.known and not story.over:
        return f"Run {item.plan} is not over."
    if item.sessions:
        return f"{item.sessions} session(s) use it."
    if item.kind is LeftoverKind.DATABASE:
        if _may_serve(item, story, site):
            return "It has the name of a database that serves people. Look who uses it; nothing removes it by itself."
        until = _kept_until(item, story, site)
        if until is not None and now < until:
            return f"It was loaded completely and is kept until {until:%Y-%m-%d %H:%M} UTC."
    quiet = QUIET if story.known else QUIET_UNKNOWN
    if seen is None or now - seen < quiet:
        whose = f"run {item.plan} is over" if story.known else f"nothing is known of plan {item.plan}"
        return f"It is removed once it was idle for {quiet}: {whose}."
    return None


def _may_serve(item: Leftover, story: Story, site: Site) -> bool:
    ref = DatabaseRef(item.server, item.name)
    if any(database.ref == ref for database in site.databases.values()):
        return True
    # On a spare server a copy has production's name from the start. Only a run that failed left it as debris.
    spares = {DatabaseRef(database.spare_server or "", database.name) for database in site.databases.values()}
    return ref in spares and (story.succeeded or not story.known)


def _kept_until(item: Leftover, story: Story, site: Site) -> datetime | None:
    if not story.whole or story.ended_at is None:
        return None
    kept = [
        database.quarantine
        for database in site.databases.values()
        if item.server in (database.server, database.spare_server)
    ]
    return story.ended_at + max(kept, default=timedelta(0))


async def works(ports: Ports, story: Story) -> bool:
    """Whether a job of the plan is still at work."""
    states = [await ports.executor.find(job) for job in story.jobs]
    return any(state is not None and state.phase is JobPhase.RUNNING for state in states)


async def remove(ports: Ports, item: Leftover) -> None:
    """Raises DrError when it is no longer what it was, or is in use."""
    if item.kind is LeftoverKind.ROLE:
        await ports.postgres.discard_role(item.server, item.name, mark=item.mark)
    else:
        await ports.postgres.discard(DatabaseRef(item.server, item.name), mark=item.mark, idle=True)


def in_order(items: Sequence[Leftover]) -> list[Leftover]:
    """Databases before the roles that have rights in them."""
    return sorted(items, key=lambda item: (item.kind is LeftoverKind.ROLE, item.server, item.name))
