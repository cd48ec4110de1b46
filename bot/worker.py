"""The worker: answers requests, starts runs whose signatures are complete, takes over runs of dead workers.

It has the credentials of the world and re-derives every decision from the stored acts; that a plan is approved is
nowhere stored. It never talks to Slack: everything for people goes through the outbox.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from actions import approval, registry
from actions.catalog.run import Retry
from actions.contract import PLAN_SCHEMA, Action, Kinds, ParamsT, Plan, Query, Report, Risk, UnknownKindError
from actions.errors import DrError, PermanentError, TemporaryError, UserError
from actions.ports import Ports
from actions.runner import BrokenOffError, Order, OrderKind, Outcome, Runner, RunResult
from bot.doctor import Doctor
from bot.ports import Who
from bot.run_record import DatabaseJournal, Painter
from bot.services import answers, provenance
from bot.services.approvals import Approvals
from bot.services.desk import RESTORE_OFFER
from bot.services.incidents import Incidents
from bot.services.plans import Plans, RequestRefusedError, note_plan
from bot.services.record.watch import Watch
from bot.services.run_control import ORDERS, RunControl
from bot.services.wake import Wake
from storage import incidents, outbox, plans, requests, runs
from storage.runs import LeaseLostError
from storage.session import Database, readable
from storage.tables import PlanRow, RequestRow, RunRow

log = structlog.get_logger()

POLL = timedelta(seconds=5)
"""NOTIFY is only a hint; this is how long a lost one can delay anything."""

LOOK_FOR_ORDERS = timedelta(seconds=1)
"""How long an order can be delayed by a notification that was lost."""

UNREADABLE_FOR = 2
"""So many leases a run that this version cannot read is left to a newer worker, before people are asked."""


class Catalogue(Protocol):
    """What the worker can do: `actions.registry`, or a test's own."""

    @property
    def QUERIES(self) -> Sequence[type[Query[Any]]]: ...  # noqa: N802 - the module's name for it

    def action(self, name: str, /) -> Action[Any]: ...

    def query(self, name: str, /) -> Query[Any]: ...

    def kinds(self) -> Kinds: ...


class Worker:
    """One worker process. Any number may run on one database."""

    def __init__(
        self,
        database: Database,
        ports: Ports,
        approvals: Approvals,
        all_plans: Plans,
        all_incidents: Incidents,
        doctor: Doctor,
        wake: Wake,
        control: RunControl,
        *,
        record: Watch | None = None,
        catalogue: Catalogue = registry,
        lease: timedelta = timedelta(seconds=30),
        parallel: int = 4,
    ) -> None:
        self._database = database
        self._ports = ports
        self._approvals = approvals
        self._plans = all_plans
        self._incidents = all_incidents
        self._doctor = doctor
        self._wake = wake
        self._control = control
        self._record = record  # None: the plan has no witnesses
        self._catalogue = catalogue
        self._lease = lease
        self._parallel = parallel
        # Unique for each process: two processes with one id once ran a step twice in another engine.
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._running: dict[str, asyncio.Task[None]] = {}
        self._hanging: set[asyncio.Task[bool | None]] = set()  # so that nobody forgets them before they end

    async def run(self) -> None:
        """Work until cancelled; then hand over what is running."""
        log.info("worker_started", worker=self.id)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._parallel):
                tasks.create_task(self._requests())
            tasks.create_task(self._runs(tasks))

    # ------------------------------------------------------------ requests

    async def _requests(self) -> None:
        while True:
            try:
                worked = await self._one_request()
            except DrError as error:
                log.warning("request_failed", error=str(error))
                worked = False
            if not worked:
                await self._pause("request")

    async def _pause(self, queue: str, *, at_most: timedelta = POLL) -> None:
        try:
            async with asyncio.timeout(at_most.total_seconds()):
                await self._wake.wait(queue)
        except TimeoutError:
            return

    async def _one_request(self) -> bool:
        refused: tuple[RequestRefusedError, Who] | None = None
        async with self._database.session() as session:
            request = await requests.take(session)
            if request is None:
                return False
            self._wake("request")  # another one may be waiting behind it
            who = Who.model_validate(request.reply.get("who", {}))
            request.state = "done"
            try:
                async with session.begin_nested():
                    await self._answer(session, request, who)
            except RequestRefusedError as error:
                refused = (error, who)
            except UserError as error:
                await self._tell(session, request, str(error))
            except ValidationError as error:
                await self._tell(session, request, f"The arguments do not fit: {_first(error)}. See `/dr help`.")
            except DrError as error:
                log.warning("request_failed", request=request.id, error=str(error))
                await self._tell(session, request, f"{error} (request {request.id})")
            if refused is not None:
                await self._approvals.record_refusal(session, refused[0].row, who, refused[0].refusal)
                await self._tell(session, request, str(refused[0]))
            session.add(request)
        return True

    async def _answer(self, session: AsyncSession, request: RequestRow, who: Who) -> None:
        if request.name == RESTORE_OFFER:
            await self._offer(session, request)
        elif request.name in ORDERS:
            await self._report(session, request, await self._control.order(session, request, who))
        elif request.name == "status":
            await self._report(session, request, await answers.status(session, self._incidents, self._ports))
        elif request.name == "doctor":
            findings = await self._doctor.examine()
            await self._report(session, request, Report(title="Doctor", findings=tuple(findings)))
        elif request.name in {query.name for query in self._catalogue.QUERIES}:
            query = self._catalogue.query(request.name)
            report = await query.read(self._params(query.params, request), self._ports)
            await self._report(session, request, report)
        else:
            action = self._catalogue.action(request.name)
            named: dict[str, str] = {}
            if "run" in action.params.model_fields:
                run, _ = await self._control.pick(session, request.params.get("run"), request.channel)
                named["run"] = run.id
            params = self._params(action.params, request, **named)
            row = await self._plans.propose(session, request, action, params, self._ports, who)
            request.plan_id = row.id

    def _params(self, kind: type[ParamsT], request: RequestRow, **named: str) -> ParamsT:
        """What was given; the only database of the plan where one is needed and none was named."""
        given = {name: value for name, value in request.params.items() if value is not None} | named
        field = kind.model_fields.get("database")
        if field is not None and field.is_required() and "database" not in given:
            databases = sorted(self._ports.site.databases)
            if len(databases) != 1:
                known = ", ".join(f"`{name}`" for name in databases)
                raise UserError(f"Name the database; the plan knows {known}.")
            given["database"] = databases[0]
        return kind.model_validate(given)

    async def _offer(self, session: AsyncSession, request: RequestRow) -> None:
        offer = await answers.restore_offer(self._ports, request.params.get("database"))
        payload = {
            "restore": offer.model_dump(mode="json"),
            "alternatives": bool(request.params.get("alternatives")),
            "request": request.id,
        }
        await outbox.add(session, "view", request.channel, ref=str(request.reply.get("view_id")), payload=payload)

    async def _report(self, session: AsyncSession, request: RequestRow, report: Report) -> None:
        payload: dict[str, Any] = {"report": report.model_dump(mode="json"), "request": request.id}
        if request.reply.get("ephemeral", True):
            payload |= {"user": request.slack_user, "response_url": request.reply.get("response_url")}
        await outbox.add(session, "report", request.channel, payload=payload)

    async def _tell(self, session: AsyncSession, request: RequestRow, text: str) -> None:
        request.state, request.error = "failed", readable(session, text)
        view = request.reply.get("view_id")
        if view:
            payload = {"text": text, "request": request.id}
            await outbox.add(session, "view", request.channel, ref=view, payload=payload)
            return
        payload = {"text": text, "user": request.slack_user, "response_url": request.reply.get("response_url")}
        kind = "ephemeral" if request.slack_user else "text"
        await outbox.add(session, kind, request.channel, payload=payload | {"request": request.id})

    # ------------------------------------------------------------ runs

    async def _runs(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            try:
                await self._look_for_runs(tasks)
            except DrError as error:
                log.warning("looking_for_runs_failed", error=str(error))
            # Nobody notifies of a worker that fell silent, so a short lease needs looks as frequent.
            await self._pause("signature", at_most=min(POLL, self._lease / 3))

    async def _look_for_runs(self, tasks: asyncio.TaskGroup) -> None:
        async with self._database.session() as session:
            waiting = await runs.awaiting(session, plan_schema=PLAN_SCHEMA)
            orphans = await runs.orphaned(session, plan_schema=PLAN_SCHEMA, lease=self._lease)
        for run in waiting:
            try:
                await self._consider(run, tasks)
            except UnknownKindError as error:
                # Signed for a newer version, which will start it; it must not keep others from starting.
                log.warning("run_of_another_version", run=run.id, error=str(error))
        for run_id in orphans:
            try:
                await self._take_over(run_id, tasks)
            except UnknownKindError as error:
                await self._ask_for(run_id, error)

    async def _ask_for(self, run_id: str, error: UnknownKindError) -> None:
        """This version cannot read a run that is in its middle: a newer worker may come; else people are asked."""
        log.warning("run_of_another_version", run=run_id, error=str(error))
        message = f"{error} Start a worker of that version, then have the run look again."
        async with self._database.session() as session:
            row = await plans.get(session, run_id)
            if row is None or not await runs.ask(session, run_id, message=message, silent=self._lease * UNREADABLE_FOR):
                return
            text = f"Run {run_id} stopped and asks: {message}"
            await note_plan(session, row, kind="run", text=text, at=self._ports.clock.now(), data={"plan": run_id})
            await self._control.call(session, row, message, key="unreadable")

    async def _consider(self, run: RunRow, tasks: asyncio.TaskGroup) -> None:
        async with self._database.session() as session:
            await plans.hold(session, run.id)
            row = await plans.get(session, run.id)
            if row is None:
                return
            now = self._ports.clock.now()
            decision = await self._approvals.decision(session, row, now)
            if self._record is not None and decision.state is approval.State.APPROVED:
                if not await self._record.may_claim():
                    return
                decision = await self._record.judged(session, row, decision)
            if decision.state is approval.State.APPROVED:
                plan = self._catalogue.kinds().plan(row.document)
                epoch = await runs.claim(session, run.id, owner=self.id, lease=self._lease, locks=plan.locks)
                if epoch is None:
                    await self._control.make_way(session, row, plan)
                    return
                await note_plan(
                    session,
                    row,
                    kind="run",
                    text=f"Run {row.id} started: {plan.summary}",
                    at=now,
                    data={"plan": row.id},
                )
            elif decision.state is approval.State.PENDING:
                return
            else:
                state, message = str(decision.state), decision.reason
                await provenance.record(session, row, decision)
                await runs.close_unsigned(session, run.id, state=state, message=message, at=now)
                await note_plan(
                    session, row, kind="run", text=f"Plan {row.id} {state}: {message}", at=now, data={"plan": row.id}
                )
                return
        self._start(row, plan, epoch, tasks)

    async def _take_over(self, run_id: str, tasks: asyncio.TaskGroup) -> None:
        async with self._database.session() as session:
            row = await plans.get(session, run_id)
            if row is None:
                return
            plan = self._catalogue.kinds().plan(row.document)
            if self._record is not None and not await self._record.may_claim():
                return
            before = await runs.get(session, run_id)
            stood_still = before is not None and not before.owner
            epoch = await runs.claim(session, run_id, owner=self.id, lease=self._lease, locks=plan.locks)
            if epoch is None:
                return
            text = f"Run {run_id} taken over by another worker after its worker fell silent"
            if stood_still:
                text = f"Run {run_id} goes on"
            now = self._ports.clock.now()
            void = "" if self._record is None else await self._record.void(session, row, started=True)
            if void:
                await runs.end(session, run_id, owner=self.id, epoch=epoch, state="failed", message=void, at=now)
                text = f"Run {run_id} ended where it stood: {void}"
            await note_plan(session, row, kind="run", text=text, at=now, data={"plan": run_id, "epoch": epoch})
        if not void:
            self._start(row, plan, epoch, tasks)

    def _start(self, row: PlanRow, plan: Plan, epoch: int, tasks: asyncio.TaskGroup) -> None:
        task = tasks.create_task(self._drive(row, plan, epoch))
        self._running[row.id] = task
        task.add_done_callback(lambda _: self._running.pop(row.id, None))

    async def _drive(self, row: PlanRow, plan: Plan, epoch: int) -> None:
        journal = DatabaseJournal(self._database, row, plan, owner=self.id, epoch=epoch)
        painter = Painter(self._database, row, self._ports, epoch=epoch)
        runner = Runner(
            plan,
            self._ports,
            journal,
            guard=lambda: self._guard(row, epoch),
            orders=lambda: self._order(row),
            progress=painter.take,
        )
        beat = asyncio.create_task(self._beat(row.id, epoch))
        try:
            await self._finish(row, epoch, await self._carried_out(row, runner, beat))
        except LeaseLostError as error:
            log.warning("lease_lost", run=row.id, error=str(error))
        except (BrokenOffError, TemporaryError) as error:
            # Our own database is away. Whoever sees it again when the lease is over goes on, and may be ourselves.
            log.warning("run_broken_off", run=row.id, error=str(error))
        except asyncio.CancelledError:
            await self._hand_over(row.id, epoch)
            raise
        except Exception as error:
            # A bug of ours must not take the other runs down; the lease runs out and another worker probes the step.
            log.exception("run_crashed", run=row.id, error=type(error).__name__)
        finally:
            await _end(beat)
            await painter.close()

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
            await self._pause("order", at_most=LOOK_FOR_ORDERS)
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
                await runs.renew(session, run_id, owner=self.id, epoch=epoch, lease=self._lease)
        except LeaseLostError:
            return None
        except DrError as error:
            log.warning("beat_failed", run=run_id, error=type(error).__name__)
            return False
        return True

    async def _guard(self, row: PlanRow, epoch: int) -> None:
        """Before every step: the run is still ours and its signatures still count under the roster in force."""
        async with self._database.session() as session:
            await runs.ours(session, row.id, owner=self.id, epoch=epoch)
            decision = await self._approvals.decision(session, row, self._ports.clock.now(), started=True)
            await provenance.record(session, row, decision)
        if decision.state is not approval.State.APPROVED:
            why = decision.reason or ", ".join(decision.missing)
            raise PermanentError(f"The signatures no longer suffice ({why}); ask for a new plan.")
        if self._record is not None and Risk(row.risk) in (Risk.DESTRUCTIVE, Risk.IRREVERSIBLE):
            await self._record.covered(row)

    async def _finish(self, row: PlanRow, epoch: int, result: RunResult) -> None:
        now = self._ports.clock.now()
        async with self._database.session() as session:
            state = str(result.outcome)
            await runs.end(session, row.id, owner=self.id, epoch=epoch, state=state, message=result.message, at=now)
            if result.outcome is Outcome.SUCCEEDED and self._recovers(row):
                await _mark_recovered(session, row, now)
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
            if result.outcome is Outcome.ASKING:
                await self._control.call(session, row, result.message, key=f"{epoch}")
        log.info("run_ended", run=row.id, outcome=state)

    def _recovers(self, row: PlanRow) -> bool:
        """A retry recovers what the run would have recovered."""
        retried = row.document.get("about") if row.action == Retry.name else None
        return self._catalogue.action(str(retried or row.action)).recovers

    async def _hand_over(self, run_id: str, epoch: int) -> None:
        async with self._database.session() as session:
            await runs.give_up(session, run_id, owner=self.id, epoch=epoch)


async def _end(*tasks: asyncio.Task[object] | asyncio.Task[None] | asyncio.Task[RunResult]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _mark_recovered(session: AsyncSession, row: PlanRow, now: datetime) -> None:
    incident = None if row.incident_id is None else await incidents.get(session, row.incident_id)
    if incident is not None and incident.recovered_at is None:
        incident.recovered_at = now
        session.add(incident)
        achieved = timedelta(seconds=round((now - incident.impact_started_at).total_seconds()))
        met = "met" if achieved <= timedelta(seconds=incident.rto_s) else "missed"
        text = f"Recovered: achieved RTO {achieved}, target {timedelta(seconds=incident.rto_s)} ({met})"
        await note_plan(
            session, row, kind="recovered", text=text, at=now, data={"achieved_rto_s": achieved.total_seconds()}
        )


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"`{where}`: {first['msg']}" if where else str(first["msg"])
