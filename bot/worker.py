"""The worker: answers requests, starts runs whose signatures are complete, takes over runs of dead workers.

It has the credentials of the world and re-derives every decision from the stored acts; that a plan is approved is
nowhere stored. It never talks to Slack: everything for people goes through the outbox.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from actions import approval, registry
from actions.contract import PLAN_SCHEMA, Action, Kinds, ParamsT, Plan, Query, Report, UnknownKindError
from actions.errors import DrError, RefusedError, TemporaryError, UserError
from actions.ports import Ports
from actions.steps.moments import moment_of
from actions.steps.phrases import span
from bot.doctor import Doctor
from bot.driver import Driver
from bot.ports import Who
from bot.services import answers, custody, provenance
from bot.services.approvals import SCHEDULE, Approvals
from bot.services.desk import RESTORE_OFFER
from bot.services.drills import QUERIES as DRILL_QUERIES
from bot.services.drills import Drills
from bot.services.incidents import Incidents
from bot.services.paging import page
from bot.services.plans import Plans, RequestRefusedError, note_plan
from bot.services.record.watch import Watch, restored
from bot.services.refusals import Door
from bot.services.run_control import ORDERS, WAITS, RunControl
from bot.services.wake import Wake
from storage import incidents, outbox, plans, requests, runs
from storage.session import Database, readable
from storage.tables import PlanRow, RequestRow, RunRow

log = structlog.get_logger()

POLL = timedelta(seconds=5)
"""NOTIFY is only a hint; this is how long a lost one can delay anything."""

STATUS_WITHIN = timedelta(seconds=45)
"""How long a status may take; the command line waits a little longer. What reads WAL, a registry or a cluster may take
as long as it needs."""

STATUSES = ("status", "status.backups", "status.catalogue")

JUST_AFTER = timedelta(milliseconds=50)
"""How long after the end of a lease its run is looked for."""

UNREADABLE_FOR = 2
"""So many leases a run that this version cannot read is left to a newer worker, before people are asked."""

NOT_NOW = (
    "By the clock of the bot's database, or under a version of the plan file that has just come into force, it may not "
    "start at this moment. It is looked at again; if this stays so, set the clocks of the bot and of its database."
)


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
        drills: Drills,
        record: Watch | None = None,
        catalogue: Catalogue = registry,
        share: runs.Share = runs.EVERY_RUN,
        answers_requests: bool = True,
        lease: timedelta = timedelta(seconds=30),
        parallel: int = 4,
        status_within: timedelta = STATUS_WITHIN,
    ) -> None:
        self._database = database
        self._ports = ports
        self._approvals = approvals
        self._plans = all_plans
        self._incidents = all_incidents
        self._drills = drills
        self._doctor = doctor
        self._wake = wake
        self._control = control
        self._record = record  # None: the plan has no witnesses
        self._catalogue = catalogue
        self._status_within = status_within
        self._share = share
        self._answers_requests = answers_requests
        self._lease = lease
        self._parallel = parallel
        self._watching = asyncio.Lock()
        # Unique for each process: two processes with one id once ran a step twice in another engine.
        self.machine = socket.gethostname()  # what it leaves on its disk is there alone
        self.id = f"{self.machine}-{os.getpid()}-{secrets.token_hex(3)}"
        self._driver = Driver(
            database,
            ports,
            approvals,
            control,
            wake,
            record=record,
            action=catalogue.action,
            lease=lease,
            owner=self.id,
        )

    async def run(self) -> None:
        """Work until cancelled; then hand over what is running."""
        log.info("worker_started", worker=self.id)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._parallel if self._answers_requests else 0):
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
            except Exception:
                log.exception("requests_crashed")
                worked = False
            if not worked:
                # One waits for all: a request wakes a single taker, which wakes the next before it begins.
                async with self._watching:
                    await self._pause("request")

    async def _pause(self, queue: str, *, at_most: timedelta = POLL) -> None:
        try:
            async with asyncio.timeout(at_most.total_seconds()):
                await self._wake.wait(queue)
        except TimeoutError:
            return

    async def _one_request(self) -> bool:
        """Answer the oldest request; False when there is none. One that cannot even be refused is failed by itself, so
        that no worker takes it again before those behind it."""
        taken: list[int] = []
        try:
            return await self._take_request(taken)
        except TemporaryError:
            raise
        except Exception as error:
            if not taken:
                raise
            log.exception("request_crashed", request=taken[0])
            async with self._database.session() as session:
                request = await requests.get(session, taken[0])
                if request is not None:
                    await self._tell(session, request, _defect(error, request))
                    session.add(request)
        return True

    async def _take_request(self, taken: list[int]) -> bool:
        refused: tuple[RequestRefusedError, Who] | None = None
        async with self._database.session() as session:
            request = await requests.take(session)
            if request is None:
                return False
            taken.append(request.id or 0)
            self._wake("request")  # another one may be waiting behind it
            who = Who.model_validate(request.reply.get("who", {}))
            request.state = "done"
            try:
                async with session.begin_nested():
                    await self._answer(session, request, who)
            except RequestRefusedError as error:
                refused = (error, who)
            except UserError as error:
                # Rolled back is what was written for it, not that it was asked for.
                await self._turn_down(session, request, who, error)
            except ValidationError as error:
                told = f"The arguments do not fit: {_first(error)}. See `/dr help`."
                await self._turn_down(session, request, who, RefusedError(told, code=Door.MALFORMED))
            except DrError as error:
                log.warning("request_failed", request=request.id, error=str(error))
                await self._tell(session, request, f"{error} (request {request.id})")
            except SQLAlchemyError:
                raise  # of our own database: either it is away, or nothing can be written in this transaction
            except Exception as error:
                log.exception("request_crashed", request=request.id)
                await self._tell(session, request, _defect(error, request))
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
            async with _bounded(request.name, self._status_within):
                found = await answers.status(session, self._incidents, self._ports)
            await self._report(session, request, found)
        elif request.name in DRILL_QUERIES:
            await self._report(session, request, await self._drills.report(session, request.name))
        elif request.name in custody.QUERIES:
            found = await custody.report(session, request.name, request.params, request.channel)
            await self._report(session, request, found)
        elif request.name == "doctor":
            findings = await self._doctor.examine()
            await self._report(session, request, Report(title="Doctor", findings=tuple(findings)))
        elif request.name in {query.name for query in self._catalogue.QUERIES}:
            query = self._catalogue.query(request.name)
            async with _bounded(request.name, self._status_within):
                report = await query.read(self._params(query.params, request), self._ports)
            await self._report(session, request, report)
        else:
            action = self._catalogue.action(request.name)
            named: dict[str, str] = {}
            if "run" in action.params.model_fields:
                run, _ = await self._control.pick(session, request.params.get("run"), request.channel)
                named["run"] = run.id
            if "before" in action.params.model_fields and (began := await self._impact(session, request)):
                # What was dumped since may hold the damage.
                named["before"] = began.isoformat()
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

    async def _impact(self, session: AsyncSession, request: RequestRow) -> datetime | None:
        """When the impact began: as the request says, else as its incident does. Raises UserError for what is no
        moment."""
        said = request.params.get("before")
        if said is not None:
            return moment_of(str(said), self._ports.clock.now())
        row = await incidents.at_hand(session, request.incident_id)
        return None if row is None else row.impact_started_at

    async def _offer(self, session: AsyncSession, request: RequestRow) -> None:
        began = await self._impact(session, request)
        offer = await answers.restore_offer(self._ports, request.params.get("database"), before=began)
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

    async def _turn_down(self, session: AsyncSession, request: RequestRow, who: Who, error: UserError) -> None:
        await self._approvals.record_turned_down(session, who, error.code, f"{request.name}: {error}")
        await self._tell(session, request, str(error))

    async def _tell(self, session: AsyncSession, request: RequestRow, text: str) -> None:
        request.state, request.error = "failed", readable(session, text)
        if not request.channel and request.person == SCHEDULE:
            log.warning("routine_refused", request=request.id, name=request.name, error=request.error)
            return
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
            pause = min(POLL, self._lease / 3)
            try:
                silence = await self._look_for_runs(tasks)
                # Nobody notifies of a worker that fell silent: look again when its lease would be over.
                pause = pause if silence is None else min(pause, silence + JUST_AFTER)
            except DrError as error:
                log.warning("looking_for_runs_failed", error=str(error))
            except Exception:
                log.exception("looking_for_runs_crashed")
            await self._pause("signature", at_most=pause)

    async def _look_for_runs(self, tasks: asyncio.TaskGroup) -> timedelta | None:
        """Start and take over what may be; the time until the first lease in force runs out."""
        async with self._database.session() as session:
            waiting = await runs.awaiting(session, plan_schema=PLAN_SCHEMA, share=self._share)
            orphans = await runs.orphaned(session, plan_schema=PLAN_SCHEMA, lease=self._lease, share=self._share)
            silence = await runs.silence(session)
        for run in waiting:
            # One that cannot be judged must not keep others from starting.
            try:
                await self._consider(run, tasks)
            except UnknownKindError as error:
                # Signed for a newer version, which will start it.
                log.warning("run_of_another_version", run=run.id, error=str(error))
            except DrError as error:
                log.warning("run_not_considered", run=run.id, error=str(error))
            except Exception as error:
                log.exception("run_not_considered", run=run.id)
                await self._cannot_start(run.id, error)
        for run_id in orphans:
            try:
                await self._take_over(run_id, tasks)
            except UnknownKindError as error:
                log.warning("run_of_another_version", run=run_id, error=str(error))
                await self._ask_for(run_id, f"{error} Start a worker of that version, then have the run look again.")
            except DrError as error:
                log.warning("run_not_taken_over", run=run_id, error=str(error))
            except Exception as error:
                log.exception("run_not_taken_over", run=run_id)
                await self._ask_for(
                    run_id,
                    "No worker could carry it on: that failed in a way that was not foreseen "
                    f"({type(error).__name__}). The log of the worker has the details under `{run_id}`. Have the run "
                    "look again when that is repaired.",
                )
        return silence

    async def _cannot_start(self, run_id: str, error: Exception) -> None:
        """Say once, on the card and by a page, that a defect keeps this run from starting; it is tried again."""
        message = (
            f"It cannot be judged or started: that failed in a way that was not foreseen ({type(error).__name__}). The "
            f"log of the worker has the details under `{run_id}`. It is tried again until its plan expires."
        )
        async with self._database.session() as session:
            row = await plans.get(session, run_id)
            if row is not None and await runs.waits(session, run_id, message=message):
                await outbox.add(session, "plan", row.channel, ref=run_id)
                await page(
                    session, f"Run {run_id} ({row.action}) does not start. {message}", key=f"run/{run_id}/defect"
                )

    async def _ask_for(self, run_id: str, message: str) -> None:
        """No worker that is there can carry on a run that is in its middle: one that can may come; else people are
        asked."""
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
                    if self._record.unmet:
                        await provenance.tell_unmet(session, row, now)
                    return
                decision = await self._record.judged(session, row, decision)
            if decision.state is approval.State.APPROVED:
                plan = self._catalogue.kinds().plan(row.document)
                epoch = await self._start(session, row, plan)
                if epoch is None:
                    return
                await note_plan(
                    session,
                    row,
                    kind="run",
                    text=f"Run {row.id} started on `{self.machine}`: {plan.summary}",
                    at=now,
                    data={"plan": row.id},
                )
            elif decision.state is approval.State.PENDING:
                if decision.unseen:
                    await provenance.tell_unseen(session, row, decision, now)
                return
            else:
                state, message = str(decision.state), await self._why_not(session, row, run, decision)
                if not await runs.close_unsigned(session, run.id, state=state, message=message, at=now):
                    return  # told by the worker that was quicker
                await provenance.record(session, row, decision)
                await note_plan(
                    session, row, kind="run", text=f"Plan {row.id} {state}: {message}", at=now, data={"plan": row.id}
                )
                return
        tasks.create_task(self._driver.drive(row, plan, epoch))

    async def _why_not(self, session: AsyncSession, row: PlanRow, run: RunRow, decision: approval.Decision) -> str:
        """Why a plan never runs; of one that waited for its locks until its time was over, for whom."""
        if decision.state is not approval.State.EXPIRED or not run.message.startswith(WAITS):
            return decision.reason
        plan = self._catalogue.kinds().plan(row.document)
        return f"{decision.reason} {await self._control.kept_waiting(session, row, plan)}".rstrip()

    async def _start(self, session: AsyncSession, row: PlanRow, plan: Plan) -> int | None:
        """The epoch of the run that starts now; None when it waits for a lock, or for the clock of the database: what
        may not start at the moment that is noted there could not go on."""
        async with session.begin_nested() as start:
            epoch = await runs.claim(session, row.id, owner=self.id, lease=self._lease, locks=plan.locks)
            run = None if epoch is None else await runs.held(session, row.id)
            if run is not None:
                now = self._ports.clock.now()
                decision = await self._approvals.decision(session, row, now, started_at=run.started_at)
                if decision.state is approval.State.APPROVED:
                    return epoch
                await start.rollback()
        if run is None:
            await self._control.make_way(session, row, plan)
        elif await runs.waits(session, row.id, message=NOT_NOW):
            await outbox.add(session, "plan", row.channel, ref=row.id)
        return None

    async def _take_over(self, run_id: str, tasks: asyncio.TaskGroup) -> None:
        async with self._database.session() as session:
            row = await plans.get(session, run_id)
            if row is None:
                return
            plan = self._catalogue.kinds().plan(row.document)
            if self._record is not None and not await self._record.may_claim():
                if self._record.unmet:
                    await provenance.tell_unmet(session, row, self._ports.clock.now())
                return
            before = await runs.get(session, run_id)
            epoch = await runs.claim(session, run_id, owner=self.id, lease=self._lease, locks=plan.locks)
            if epoch is None:
                return
            text = f"Run {run_id} goes on, on `{self.machine}`"
            if before is not None and before.owner:
                silent = before.owner.rsplit("-", 2)[0]
                text = f"Run {run_id} taken over by a worker on `{self.machine}`: its worker on `{silent}` fell silent"
            now = self._ports.clock.now()
            void = "" if self._record is None else await self._record.void(session, row, started=True)
            if void:
                await provenance.record(session, row, restored(void))
                await runs.end(session, run_id, owner=self.id, epoch=epoch, state="failed", message=void, at=now)
                text = f"Run {run_id} ended where it stood: {void}"
            await note_plan(session, row, kind="run", text=text, at=now, data={"plan": run_id, "epoch": epoch})
        if not void:
            tasks.create_task(self._driver.drive(row, plan, epoch))


@asynccontextmanager
async def _bounded(name: str, limit: timedelta) -> AsyncIterator[None]:
    """What everybody asks for first is answered, if only by what it waits for. Raises TemporaryError."""
    try:
        async with asyncio.timeout(limit.total_seconds() if name in STATUSES else None):
            yield
    except TimeoutError as error:
        raise TemporaryError(
            f"No answer within {span(limit)}: a bucket or a server neither answers nor refuses. `/dr doctor` says "
            "which; `/dr run` and `/dr-incident` do not need it."
        ) from error


def _defect(error: Exception, request: RequestRow) -> str:
    return (
        f"`{request.name}` failed in a way that was not foreseen ({type(error).__name__}), and nothing was done. The "
        f"log of the worker has the details under request {request.id}."
    )


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"`{where}`: {first['msg']}" if where else str(first["msg"])
