"""Drives one claimed run: keeps its lease, checks before every step, listens for orders, writes how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from actions import approval
from actions.catalog.run import Retry
from actions.contract import Action, Plan, Risk
from actions.errors import DrError, PermanentError, TemporaryError
from actions.ports import Ports
from actions.runner import BrokenOffError, Order, OrderKind, Outcome, Runner, RunResult
from bot.run_record import DatabaseJournal, Painter
from bot.services import provenance
from bot.services.approvals import Approvals
from bot.services.plans import note_plan
from bot.services.record.watch import Footing, Watch
from bot.services.run_control import RunControl
from bot.services.wake import Wake
from storage import incidents, runs
from storage.runs import LeaseLostError
from storage.session import Database
from storage.tables import PlanRow

log = structlog.get_logger()

LOOK_FOR_ORDERS = timedelta(seconds=1)
"""How long an order can be delayed by a notification that was lost."""


class Driver:
    """Carries out the runs of one worker, `owner`."""

    def __init__(
        self,
        database: Database,
        ports: Ports,
        approvals: Approvals,
        control: RunControl,
        wake: Wake,
        *,
        record: Watch | None,
        action: Callable[[str], Action[Any]],
        lease: timedelta,
        owner: str,
    ) -> None:
        self._database = database
        self._ports = ports
        self._approvals = approvals
        self._control = control
        self._wake = wake
        self._record = record
        self._action = action
        self._lease = lease
        self._owner = owner
        self._hanging: set[asyncio.Task[bool | None]] = set()  # so that nobody forgets them before they end

    async def drive(self, row: PlanRow, plan: Plan, epoch: int) -> None:
        """Never raises but CancelledError: what goes wrong here must not take other runs down."""
        journal = DatabaseJournal(self._database, row, plan, owner=self._owner, epoch=epoch)
        painter = Painter(self._database, row, self._ports, epoch=epoch)
        footing = None if self._record is None else Footing(self._record)
        runner = Runner(
            plan,
            self._ports,
            journal,
            guard=lambda: self._guard(row, plan, epoch, footing),
            orders=lambda: self._order(row),
            progress=painter.take,
        )
        beat = asyncio.create_task(self._beat(row.id, epoch))
        try:
            await self._finish(row, epoch, await self._carried_out(row, runner, beat), plan)
        except LeaseLostError as error:
            log.warning("lease_lost", run=row.id, error=str(error))
        except (BrokenOffError, TemporaryError) as error:
            # Our own database is away. Whoever sees it again when the lease is over goes on, and may be ourselves.
            log.warning("run_broken_off", run=row.id, error=str(error))
        except asyncio.CancelledError:
            await self._hand_over(row.id, epoch)
            raise
        except Exception as error:
            defect = secrets.token_hex(4)
            log.exception("run_crashed", run=row.id, defect=defect, error=type(error).__name__)
            await self._crashed(row, epoch, runner, type(error).__name__, defect)
        finally:
            await _end(beat)
            await painter.close()

    async def _crashed(self, row: PlanRow, epoch: int, runner: Runner, error: str, defect: str) -> None:
        """A defect of ours must not take the other runs down, and another worker would only meet it again: people must
        hear of it. They answer on the card, as to any other question, unless the journal itself is what cannot be read.
        """
        message = (
            f"The bot failed at this run in a way that was not foreseen ({error}), and has left it as it stood. The "
            f"log of the worker has the details under `{defect}`. Look at the target, then answer."
        )
        try:
            await self._finish(row, epoch, await runner.asks_about(message))
        except (LeaseLostError, BrokenOffError, TemporaryError) as lost:
            log.warning("crash_not_told", run=row.id, defect=defect, error=str(lost))
        except Exception:
            log.exception("crash_not_journalled", run=row.id, defect=defect)
            with contextlib.suppress(DrError):
                await self._finish(row, epoch, RunResult(outcome=Outcome.ASKING, message=message))

    async def _carried_out(self, row: PlanRow, runner: Runner, beat: asyncio.Task[None]) -> RunResult:
        """Run to the end. An order that is obeyed within a step breaks off what this process does; running again then
        ends what goes on elsewhere, and says how the step stands. Raises LeaseLostError when the run is not ours."""
        standing = await self._order(row)
        obeying = standing is not None and await runner.breaks_off_for(standing)
        work = asyncio.create_task(runner.run())
        # An order that stands already is obeyed first thing, which nothing should break off again.
        watch = asyncio.create_task(asyncio.Event().wait() if obeying else self._watch(row, runner))
        try:
            await asyncio.wait({beat, work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and not work.done() and not beat.done():
                await _end(work)
                work = asyncio.create_task(runner.run())
                await asyncio.wait({beat, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise LeaseLostError(f"Run {row.id} has another owner.")
            return await work
        finally:
            await _end(work, watch)

    async def _watch(self, row: PlanRow, runner: Runner) -> None:
        """Return when an order stands that is obeyed within the step that runs now."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_FOR_ORDERS.total_seconds()):
                    await self._wake.wait("order")
            try:
                order = await self._order(row)
                if order is not None and await runner.breaks_off_for(order):
                    return
            except DrError as error:
                log.warning("orders_not_readable", run=row.id, error=type(error).__name__)

    async def _order(self, row: PlanRow) -> Order | None:
        """What people, or a more urgent run, have ordered this run to do."""
        async with self._database.session() as session:
            run = await runs.get(session, row.id)
        if run is None or run.order not in set(OrderKind):
            return None
        return Order(kind=OrderKind(run.order), sentence=run.message)

    async def _beat(self, run_id: str, epoch: int) -> None:
        """Renew the lease; return when it is lost or could not be renewed for most of its length."""
        clock, lease = asyncio.get_running_loop().time, self._lease.total_seconds()
        renewed = clock()
        while True:
            await asyncio.sleep(lease / 6)
            asked = clock()
            renewal = asyncio.create_task(self._renew(run_id, epoch))
            # Not awaited when it hangs: on a dead connection a cancelled statement takes longer to end than the lease.
            await asyncio.wait({renewal}, timeout=lease / 3)
            if not renewal.done():
                renewal.cancel()
                self._hanging.add(renewal)
                renewal.add_done_callback(self._hanging.discard)
                log.warning("beat_hangs", run=run_id)
            elif renewal.result() is None:
                return
            elif renewal.result():
                renewed = asked
            if clock() - renewed > lease * 2 / 3:
                return  # fence ourselves before somebody else may take over

    async def _renew(self, run_id: str, epoch: int) -> bool | None:
        """Whether it was renewed; None when the lease is lost."""
        try:
            async with self._database.session() as session:
                await runs.renew(session, run_id, owner=self._owner, epoch=epoch, lease=self._lease)
        except LeaseLostError:
            return None
        except DrError as error:
            log.warning("beat_failed", run=run_id, error=type(error).__name__)
            return False
        return True

    async def _guard(self, row: PlanRow, plan: Plan, epoch: int, footing: Footing | None) -> None:
        """Before every step: the run is still ours, its database is the one it began on, and its signatures still count
        under the roster in force."""
        if footing is not None:
            await footing.holds()
        async with self._database.session() as session:
            run = await runs.get(session, row.id)
            started_at, now = None if run is None else run.started_at, self._ports.clock.now()
            decision = await self._approvals.decision(session, row, now, started_at=started_at)
            # Only now: the lease is renewed meanwhile, and what is ours at the end was so all along.
            await runs.ours(session, row.id, owner=self._owner, epoch=epoch)
            await provenance.record(session, row, decision)
        if decision.state is not approval.State.APPROVED:
            why = decision.reason or ", ".join(decision.missing)
            raise PermanentError(f"The signatures no longer suffice ({why}); ask for a new plan.")
        if self._record is not None and plan.risk in (Risk.DESTRUCTIVE, Risk.IRREVERSIBLE):
            await self._record.covered(row)

    async def _finish(self, row: PlanRow, epoch: int, result: RunResult, plan: Plan | None = None) -> None:
        now = self._ports.clock.now()
        async with self._database.session() as session:
            state = str(result.outcome)
            await runs.end(session, row.id, owner=self._owner, epoch=epoch, state=state, message=result.message, at=now)
            if result.outcome is Outcome.SUCCEEDED and self._recovers(row):
                await _mark_recovered(session, row, await _back_since(session, row, plan, now), now)
            texts = {
                Outcome.SUCCEEDED: f"Run {row.id} succeeded",
                Outcome.FAILED: f"Run {row.id} failed: {result.message}",
                Outcome.ASKING: f"Run {row.id} stopped and asks: {result.message}",
                Outcome.STALE: f"Run {row.id} did not start, the world has changed: {result.message}",
                Outcome.PAUSED: f"Run {row.id} is paused: {result.message}",
                Outcome.ABORTED: f"Run {row.id} is aborted: {result.message}",
                Outcome.PREEMPTED: f"Run {row.id} gave way: {result.message}",
            }
            data = {"plan": row.id, "outcome": state}
            await note_plan(session, row, kind="run", text=texts[result.outcome], at=now, data=data)
            if result.outcome is Outcome.STALE:
                await provenance.refuse(session, row, approval.Code.STALE_WORLD, result.message)
            if result.outcome is Outcome.ASKING:
                await self._control.call(session, row, result.message, key=f"{epoch}")
        log.info("run_ended", run=row.id, outcome=state)

    def _recovers(self, row: PlanRow) -> bool:
        """A retry recovers what the run would have recovered."""
        retried = row.document.get("about") if row.action == Retry.name else None
        return self._action(str(retried or row.action)).recovers

    async def _hand_over(self, run_id: str, epoch: int) -> None:
        async with self._database.session() as session:
            await runs.give_up(session, run_id, owner=self._owner, epoch=epoch)


async def _end(*tasks: asyncio.Task[object] | asyncio.Task[None] | asyncio.Task[RunResult]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _back_since(session: AsyncSession, row: PlanRow, plan: Plan | None, now: datetime) -> datetime:
    """When the last step had ended that service waits for."""
    later = {number for number, step in enumerate(plan.steps) if step.afterwards} if plan is not None else set()
    if not later:
        return now
    return max((line.at for line in await runs.journal(session, row.id) if line.step not in later), default=now)


async def _mark_recovered(session: AsyncSession, row: PlanRow, back: datetime, now: datetime) -> None:
    incident = None if row.incident_id is None else await incidents.get(session, row.incident_id)
    if incident is not None and incident.recovered_at is None:
        incident.recovered_at = back
        session.add(incident)
        achieved = timedelta(seconds=round((back - incident.impact_started_at).total_seconds()))
        met = "met" if achieved <= timedelta(seconds=incident.rto_s) else "missed"
        text = f"Recovered: achieved RTO {achieved}, target {timedelta(seconds=incident.rto_s)} ({met})"
        await note_plan(
            session, row, kind="recovered", text=text, at=now, data={"achieved_rto_s": achieved.total_seconds()}
        )
