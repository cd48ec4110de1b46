"""The step that sees where an application's sessions are, once it was pointed at another server.

Ready pods and a login that works prove the new address, not that the pods use it: one that kept its environment, or a
pool that outlived the ConfigMap, goes on with the old server. Sessions that stay there are written to and lost, so the
run asks. None on the new one is only told: an application may connect when it is first used.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import ClassVar, Literal

from actions.contract import Probe, Step
from actions.errors import DrError, TemporaryError, VerificationError
from actions.ports import Ports, Progress, ProgressReport
from actions.site import DatabaseRef, Frozen, SecretRef, WorkloadKind, WorkloadRef
from actions.steps import byhand
from actions.steps.phrases import counted, span

PATIENCE = timedelta(seconds=30)
"""For a first session on the new server, and for the last one on the old to end."""

LOOK = timedelta(seconds=2)
"""How long one look goes on, while the application is asked for its health."""

ASKED_EVERY = timedelta(milliseconds=100)

PAUSE = timedelta(seconds=1)


class Seen(Frozen):
    """Where the sessions are."""

    there: int  # on the new server
    left: int = 0  # on the old one
    unseen: str = ""  # why the old one was not looked at, as a sentence; empty: it was

    @property
    def settled(self) -> bool:
        return self.there > 0 and self.left == 0


class SeeConnected(Step):
    """The application has sessions on the new server and none on the old."""

    afterwards: ClassVar[bool] = True
    kind: Literal["see_connected"] = "see_connected"
    timeout: timedelta = timedelta(minutes=3)
    service: str
    target: DatabaseRef
    address: str  # of the target's server, as the application is given it
    left: DatabaseRef  # where it came from
    connection: SecretRef | None  # tells its role; None: everybody but superusers is taken for it
    health_url: str | None
    workloads: tuple[WorkloadRef, ...] = ()

    @property
    def summary(self) -> str:
        return f"See in pg_stat_activity that `{self.service}` has connected to {self.address} and left `{self.left}`"

    @property
    def after(self) -> str:
        return f"none of its sessions is in `{self.left}`; the run says how many are in `{self.target}`"

    def by_hand(self) -> tuple[str, ...]:
        return tuple(byhand.psql(server, byhand.who_is_in(name)) for server, name in (self.target, self.left))

    async def probe(self, ports: Ports) -> Probe:  # noqa: ARG002 - a look leaves nothing behind
        return Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        until = ports.clock.now() + PATIENCE
        while not (await self._look(ports)).settled and ports.clock.now() < until:
            progress(ProgressReport(unit="steps", phase=f"waiting for `{self.service}` to connect"))
            await ports.clock.sleep(PAUSE)

    async def verify(self, ports: Ports) -> None:
        role = await self._role(ports)
        left, _ = await self._on_the_old(ports, role)
        if left:
            raise VerificationError(
                f"{counted(left, 'session')} of {f'`{role}`' if role else 'applications'} "
                f"{'is' if left == 1 else 'are'} still in `{self.left}`, on the server that `{self.service}` was "
                "pointed away from: pods go on with their old connection, and what they write there is lost. Restart "
                f"them{self._restart}, or find who it is with `{self.by_hand()[1]}`; then repeat this step."
            )

    async def outcome(self, ports: Ports) -> str:
        seen = await self._look(ports)
        old = seen.unseen or f"None is left in `{self.left}`."
        if seen.there:
            return f"`{self.service}` has {counted(seen.there, 'session')} at {self.address}. {old}"
        return (
            f"NOT SEEN: `{self.service}` has no session at {self.address}, {span(PATIENCE)} after it was checked. One "
            f"that connects when it is used is well: use it, then look with `{self.by_hand()[0]}`. If none comes, "
            f"restart its pods{self._restart}. {old}"
        )

    # ------------------------------------------------------------ what is found

    @property
    def _restart(self) -> str:
        lines = [byhand.restarted(ref) for ref in self.workloads if ref.kind is not WorkloadKind.CRON_JOB]
        return f" (`{'; '.join(lines)}`)" if lines else ""

    async def _role(self, ports: Ports) -> str:
        return "" if self.connection is None else await ports.service.login(self.connection)

    async def _look(self, ports: Ports) -> Seen:
        role = await self._role(ports)
        there = await self._on_the_new(ports, role)
        left, unseen = await self._on_the_old(ports, role)
        return Seen(there=there, left=left, unseen=unseen)

    async def _on_the_new(self, ports: Ports, role: str) -> int:
        if self.health_url is None:
            return await ports.postgres.clients(self.target, role)
        # One that connects for each question is asked some meanwhile. What it answers is no concern of this step.
        watch = asyncio.ensure_future(ports.postgres.clients(self.target, role, within=LOOK))
        try:
            while not watch.done():
                await ports.service.http(self.health_url)
                await asyncio.wait((watch,), timeout=ASKED_EVERY.total_seconds())
            return await watch
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _on_the_old(self, ports: Ports, role: str) -> tuple[int, str]:
        """How many sessions are there, or none and why nobody could look."""
        try:
            old, new = await ports.postgres.server(self.left.server), await ports.postgres.server(self.target.server)
            if old.started_at == new.started_at:
                return 0, f"Under the name `{self.left.server}` the new server answers by now."
            return await ports.postgres.clients(self.left, role), ""
        except TemporaryError:
            return 0, f"`{self.left.server}` does not answer."
        except DrError as error:
            return 0, f"`{self.left.server}` could not be looked at ({error})"
