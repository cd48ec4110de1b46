"""The step that ends the old primary once applications run on the new one. Its data is kept.

It is the last step of a promotion. Until the application was checked on the new primary the old one, closed but
running, is the quick way back, and its shutdown, which may wait for an archiver or a standby, keeps nobody waiting.
Nor does it turn a promotion that worked into a question: one that runs on, or is started again by somebody, is told
with the next thing to do, as long as it is found closed. One that may take writes again asks.
"""

from __future__ import annotations

import shlex
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Literal

from actions.contract import Kept, Probe, Step
from actions.errors import TemporaryError, VerificationError
from actions.ports import FenceFacts, Ports, Progress, ProgressReport, Pulse, ServerFacts
from actions.steps import byhand
from actions.steps.phrases import span
from actions.steps.promotion import left_open, serves
from actions.steps.rollouts import settled
from actions.steps.scratch import instance
from actions.steps.writers import Writer

PATIENCE = timedelta(minutes=2)
"""Longer than a checkpoint usually takes, and than `wal_sender_timeout` lets a standby wait that is stuck."""

REACH = timedelta(seconds=30)
"""How long a way to it is waited for."""

WATCH = timedelta(seconds=15)
"""Longer than systemd, Docker and Patroni take to start a server again that has ended."""

SHUTDOWN = WATCH + timedelta(seconds=5)
"""What it takes where nothing is waited for."""

PAUSE = timedelta(seconds=1)


class Standing(StrEnum):
    """How the old primary is found."""

    DOWN = "down"  # nothing listens at its address
    GOING = "going"  # it lets nobody in for now: it shuts down, or starts
    LOST = "lost"  # there is no way to its address
    CLOSED = "closed"  # it runs, and takes no writes
    OPEN = "open"  # it runs, and may take writes
    OTHER = "other"  # at its address another server answers


_HEARD = {Pulse.SILENT: Standing.DOWN, Pulse.REFUSES: Standing.GOING, Pulse.UNREACHABLE: Standing.LOST}


class StopPrimary(Step):
    """The old primary is shut down cleanly, by its own hand or by its workload; its data stays where it is."""

    afterwards: ClassVar[bool] = True
    kind: Literal["stop_primary"] = "stop_primary"
    timeout: timedelta = timedelta(minutes=5)
    server: str
    scratch: str  # that has taken its place
    system_id: str
    timeline_id: int  # that it writes: the new primary has its system id, but not this
    address: str  # for people: the plan file will soon name the new one
    directory: str = ""  # of its data, where it is known
    workload: Writer | None = None  # what runs it, where it runs in a cluster
    mark: str

    @property
    def summary(self) -> str:
        if self.workload is not None:
            return f"Scale {self.workload.ref} to 0, which shuts down the old primary `{self.server}`"
        return f"Shut down the old primary `{self.server}` cleanly and keep its data"

    @property
    def before(self) -> str:
        return "closed, and running"

    @property
    def after(self) -> str:
        kept = "its volumes stay" if self.workload is not None else "its data stays"
        return f"down, {kept}; where it comes up again it is closed as before, and the end of the run says so"

    @property
    def keeps(self) -> Kept:
        return Kept(
            key=f"server/{self.server}/{self.scratch}",  # the item that the promotion has made
            title=f"Former primary `{self.server}`, whose place `scratch-{self.scratch}` has taken",
            location=f"server at {self.address}{self._data}, closed; its run says whether it is down",
        )

    def by_hand(self) -> tuple[str, ...]:
        if self.workload is not None:
            return (byhand.scaled(self.workload.ref, 0),)
        note = f"at {self.address}; where systemd runs it `systemctl disable --now` and its unit"
        return (f"pg_ctl stop -m fast -D {self._pgdata}  # {note}",)

    def undo_by_hand(self) -> tuple[str, ...]:
        if self.workload is not None:
            return (byhand.scaled(self.workload.ref, self.workload.replicas), byhand.unrecorded(self.workload.ref))
        return (f"pg_ctl start -D {self._pgdata}  # at {self.address}; it comes up closed",)

    @property
    def _pgdata(self) -> str:
        return shlex.quote(self.directory) if self.directory else '"$PGDATA"'

    @property
    def _data(self) -> str:
        where = "" if self.workload is None else f", {self.workload.ref}"
        return f"{where}, data in `{self.directory}`" if self.directory else where

    # ------------------------------------------------------------ carried out

    async def probe(self, ports: Ports) -> Probe:
        if self.workload is not None:
            return Probe.DONE if await self._at_zero(ports, self.workload) else Probe.TODO
        return Probe.DONE if await ports.postgres.pulse(self.server) is Pulse.SILENT else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        progress(ProgressReport(unit="steps", phase="waiting for the end of the old primary"))
        await self._new(ports)  # nothing ends while nothing else serves
        if self.workload is not None:
            await ports.cluster.stop(self.workload.ref, mark=self.mark)
            await settled(ports, [self.workload.ref], patience=PATIENCE)
            return
        found, facts = await self._reached(ports)
        # Anything else is for `verify` to judge.
        if found is Standing.CLOSED and facts is not None and facts.started_at is not None:
            await ports.postgres.stop(self.server, started_at=facts.started_at)
            await self._ended(ports, facts.started_at)

    async def verify(self, ports: Ports) -> None:
        until = ports.clock.now() + WATCH
        found, _ = await self._look(ports)
        while found in (Standing.DOWN, Standing.GOING) and ports.clock.now() < until:
            await ports.clock.sleep(PAUSE)
            found, _ = await self._look(ports)
        if found is Standing.OPEN:
            left = left_open(await ports.postgres.fencing(self.server))
            raise VerificationError(
                f"The old primary `{self.server}` at {self.address} runs beside the new one and may take writes: "
                f"{left}. Close it or stop it by hand."
            )

    async def outcome(self, ports: Ports) -> str:
        found, _ = await self._look(ports)
        place = None if self.workload is None else await ports.cluster.workload(self.workload.ref)
        return _told(self, found, replicas=0 if place is None else place.replicas)

    # ------------------------------------------------------------ what is found

    async def _new(self, ports: Ports) -> ServerFacts:
        """The new primary. Raises TemporaryError while it does not take writes."""
        found = await instance(ports, self.scratch)
        if not await serves(ports, found):
            raise TemporaryError(f"The new primary `{found.name}` does not take writes, so nothing is done to the old.")
        return await ports.postgres.server(found.name)

    async def _at_zero(self, ports: Ports, workload: Writer) -> bool:
        facts = await ports.cluster.workload(workload.ref)
        return facts is not None and not facts.replicas and (await ports.cluster.rollout(workload.ref)).done

    async def _look(self, ports: Ports) -> tuple[Standing, ServerFacts | None]:
        if self.workload is not None and await self._at_zero(ports, self.workload):
            return Standing.DOWN, None
        pulse = await ports.postgres.pulse(self.server)
        if pulse is not Pulse.ANSWERS:
            return _HEARD[pulse], None
        new = await self._new(ports)
        try:
            facts = await ports.postgres.server(self.server)
            fence = await ports.postgres.fencing(self.server)
        except TemporaryError:
            return Standing.GOING, None
        # The plan file may name the new primary by now.
        if facts.started_at == new.started_at or not self._is(facts):
            return Standing.OTHER, None
        return Standing.CLOSED if _closed(fence) else Standing.OPEN, facts

    def _is(self, facts: ServerFacts) -> bool:
        return (facts.system_id, facts.timeline_id) == (self.system_id, self.timeline_id)

    async def _reached(self, ports: Ports) -> tuple[Standing, ServerFacts | None]:
        until = ports.clock.now() + REACH
        found = await self._look(ports)
        while found[0] is Standing.LOST and ports.clock.now() < until:
            await ports.clock.sleep(PAUSE)
            found = await self._look(ports)
        return found

    async def _ended(self, ports: Ports, started_at: datetime) -> None:
        """Wait for its end, or for a start after it."""
        until = ports.clock.now() + PATIENCE
        while ports.clock.now() < until:
            found, facts = await self._look(ports)
            if found in (Standing.DOWN, Standing.LOST, Standing.OTHER):
                return
            if facts is not None and facts.started_at != started_at:
                return
            await ports.clock.sleep(PAUSE)


def _closed(fence: FenceFacts) -> bool:
    """Sessions of administrators, who may look at it, are none of its dangers."""
    return fence.read_only and not fence.open


def _told(step: StopPrimary, found: Standing, *, replicas: int) -> str:
    old, again = f"The old primary `{step.server}` at {step.address}", " && ".join(step.undo_by_hand())
    look = f"To look at it: `{again}`. It comes up closed: read only, for administrators alone."
    if found is Standing.DOWN and step.workload is not None and replicas:
        return (
            f"{old} does not answer, but {step.workload.ref} is at {replicas} again: something scales it up (an "
            "operator, GitOps, an autoscaler). It comes up closed. Stop it there."
        )
    if found is Standing.DOWN:
        where = f" in `{step.directory}`" if step.directory else ""
        return f"{old} is down: nothing listens there. Its data is kept{where}. {look}"
    if found is Standing.GOING:
        return (
            f"{old} was asked to shut down and is not down after {span(PATIENCE)}; it lets nobody in. It waits for its "
            "archiver (`archive_command`) or for a standby. Look there; `pg_ctl stop -m immediate` ends it all the "
            "same, and it recovers when it is started."
        )
    if found is Standing.LOST:
        return (
            f"Not seen: there is no way to the old primary at {step.address} any more. Look there whether it is down."
        )
    if found is Standing.OTHER:
        return (
            f"Not seen: under the name `{step.server}` another server answers by now. Look whether the old primary at "
            f"{step.address} is down."
        )
    return (
        f"NOT STOPPED: the old primary `{step.server}` at {step.address} runs, or was started again by something "
        "(systemd, Docker, Patroni, an operator). It is closed and takes no writes of anybody but superusers. Stop it "
        f"there: `{step.by_hand()[0]}`."
    )
