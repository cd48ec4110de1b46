"""Orders to a run: pause, resume, abort, stop, look again; and which run gives way to which.

An order takes rights away, so one person of the roster is enough; it is written by the worker that takes the request,
and obeyed by the one that has the run. What gives rights (an answer, a retry) is a plan that people sign.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.ext.asyncio import AsyncSession

from actions import approval
from actions.approval import Code
from actions.contract import Plan, Report
from actions.errors import RefusedError, UserError
from actions.ports import Clock
from actions.runner import OrderKind, turned_back
from bot.ports import Who
from bot.services.approvals import NOT_ON_ROSTER, SCHEDULE, Approvals
from bot.services.own_runs import entries
from bot.services.paging import page
from bot.services.plans import note_plan
from storage import outbox, plans, runs
from storage.tables import PlanRow, RequestRow, RunRow

PAUSE, RESUME, ABORT, STOP, AGAIN = "run.pause", "run.resume", "run.abort", "run.stop", "run.again"
ORDERS = (PAUSE, RESUME, ABORT, STOP, AGAIN)
"""The requests that end here."""

OPEN = ("running", "paused", "asking")

WAITS = "Waits for "
"""How the message of a signed run begins that found a lock taken."""

_DONE = {
    PAUSE: "It pauses once its present step is done, and keeps its locks. `/dr run resume` lets it go on.",
    RESUME: "It goes on. Its signatures are checked again before its next step.",
    ABORT: "It ends once its present step is done, and puts back what was changed for it.",
    STOP: "Its present step is ended at once, with everything it has started; then it asks what to do.",
    AGAIN: "Its unclear step is looked at again. It goes on if that has happened, else it asks anew.",
}

_ORDERED = {
    PAUSE: "has ordered it to pause",
    RESUME: "has let it go on",
    ABORT: "has ordered it to be aborted",
    STOP: "has ordered it to stop at once",
    AGAIN: "has had it look again",
}


class RunControl:
    """Takes orders to runs, makes way for incidents and recoveries, calls people to a run that asks."""

    def __init__(self, approvals: Approvals, clock: Clock, *, on_call: str, recoveries: Collection[str] = ()) -> None:
        """`recoveries` are the actions that bring service back, which routine runs make way for as for an incident."""
        self._approvals = approvals
        self._clock = clock
        self._on_call = on_call
        self._recoveries = frozenset(recoveries)

    async def order(self, session: AsyncSession, request: RequestRow, who: Who) -> Report:
        """Carry out one order. Raises UserError for what cannot be obeyed."""
        person = self._approvals.policy.person(who)
        if person is None:
            raise RefusedError(NOT_ON_ROSTER.text, code=NOT_ON_ROSTER.code)
        row, run = await self.pick(session, request.params.get("run"), request.channel)
        why = f": {request.reason}" if request.reason.strip() else ""
        sentence = f"{person.name} {_ORDERED[request.name]}{why}."
        if request.name == RESUME:
            await self._resume(session, row, run)
        elif request.name == AGAIN:
            if not await runs.resume(session, run.id, state="asking"):
                raise UserError(f"Run `{run.id}` asks nothing; it is {run.state}. Look at its card.")
        else:
            await self._tell(session, run, OrderKind(request.name.removeprefix("run.")), sentence)
        now = self._clock.now()
        data = {"plan": run.id, "order": request.name}
        text = f"Run {run.id}: {sentence}"
        await note_plan(session, row, kind="order", text=text, at=now, data=data, actor=person.name)
        return Report(title=f"Run {run.id}", lines=(_DONE[request.name],))

    async def pick(self, session: AsyncSession, given: object, channel: str) -> tuple[PlanRow, RunRow]:
        """The run that was named, locked; without a name the only one that is open, in this channel if there are more.
        Raises UserError naming what there is."""
        name = str(given or "").strip("` ")
        if not name:
            name = await self._only(session, channel)
        row, run = await plans.get(session, name), await runs.held(session, name)
        if row is None or run is None:
            raise RefusedError(f"There is no run `{name}`; `/dr status` shows those there are.", code=Code.UNKNOWN_NAME)
        return row, run

    async def _only(self, session: AsyncSession, channel: str) -> str:
        found = [(run, row) for run in await runs.in_state(session, OPEN) if (row := await plans.get(session, run.id))]
        here = [pair for pair in found if pair[1].channel == channel] if len(found) > 1 else found
        if len(here) == 1:
            return here[0][0].id
        known = ", ".join(f"`{run.id}` ({row.action}, {run.state})" for run, row in found)
        raise UserError(
            f"Name the run; there are {known}." if known else "No run is open, so there is nothing to order."
        )

    async def _resume(self, session: AsyncSession, row: PlanRow, run: RunRow) -> None:
        if run.state != "paused":
            raise UserError(f"Run `{run.id}` is {run.state}, not paused. Look at its card.")
        decision = await self._approvals.decision(session, row, self._clock.now(), started_at=run.started_at)
        if decision.state is not approval.State.APPROVED:
            why = decision.reason or ", ".join(decision.missing)
            raise RefusedError(
                f"Run `{run.id}` cannot go on, its signatures no longer suffice ({why}). Abort it with "
                f"`/dr run abort {run.id}`, or let it stand and ask for a new plan.",
                code=decision.code or Code.NOT_SIGNED,
            )
        await runs.resume(session, run.id, state="paused")

    async def _tell(self, session: AsyncSession, run: RunRow, order: OrderKind, sentence: str) -> None:
        if run.state == "awaiting":
            raise UserError(f"Run `{run.id}` has not started; deny its plan instead.")
        if run.state not in OPEN:
            raise UserError(f"Run `{run.id}` is {run.state}; nothing of it runs. Look at its card.")
        if run.state == "asking":
            raise UserError(
                f"Run `{run.id}` stands still and asks, so there is nothing to {order}. Answer it on its card, or with "
                "`/dr run happened`, `repeat`, `undo` or `leave`."
            )
        if order is not OrderKind.STOP and turned_back(entries(await runs.journal(session, run.id))):
            raise UserError(
                f"Run `{run.id}` is putting back what it changed, which should end; `/dr run stop {run.id}` ends even "
                "that."
            )
        if run.state == "paused" and order in (OrderKind.PAUSE, OrderKind.STOP):
            raise UserError(
                f"Run `{run.id}` is paused already; nothing of it runs. "
                f"`/dr run resume {run.id}` lets it go on, `/dr run abort {run.id}` ends it."
            )
        if not await runs.order(session, run.id, order=order, message=sentence):
            raise UserError(f"Run `{run.id}` has been told to {run.order}, which outweighs this. Look at its card.")

    # ------------------------------------------------------------ locks

    async def make_way(self, session: AsyncSession, row: PlanRow, plan: Plan) -> None:
        """A signed run found its locks taken: routine runs give way to one of an incident and to a recovery; the card
        says who is waited for."""
        recovers = (plan.about or plan.action) in self._recoveries and row.requester != SCHEDULE
        urgent = row.incident_id is not None or recovers
        words: list[str] = []
        for theirs, held in await self._holders(session, row, plan):
            words.append(_held(theirs, held))
            if urgent and theirs.incident_id is None and theirs.requester == SCHEDULE:
                await self._yield(session, theirs, held, row, plan)
        if words and await runs.waits(session, row.id, message=f"{WAITS}{', '.join(words)}, which holds the target."):
            await outbox.add(session, "plan", row.channel, ref=row.id)

    async def kept_waiting(self, session: AsyncSession, row: PlanRow, plan: Plan) -> str:
        """Why a signed run whose time to start is over has not started, with the way out; empty where no other run
        holds what it needs."""
        holders = [_held(theirs, held) for theirs, held in await self._holders(session, row, plan)]
        if not holders:
            return ""
        return (
            f"It waited for {', '.join(holders)}, which holds the target and is not over: what was signed is not done "
            "at an hour that nobody expects. Ask for it once more when that run has ended; a rule with a longer "
            "`execution_expiry` waits longer."
        )

    async def _holders(self, session: AsyncSession, row: PlanRow, plan: Plan) -> list[tuple[PlanRow, RunRow]]:
        """The runs that hold a lock which this plan needs."""
        found = [(await plans.get(session, held.id), held) for held in await runs.holders(session, row.id, plan.locks)]
        return [(theirs, held) for theirs, held in found if theirs is not None]

    async def _yield(self, session: AsyncSession, theirs: PlanRow, held: RunRow, row: PlanRow, plan: Plan) -> None:
        if held.order == OrderKind.YIELD:
            return
        what = ", a recovery" if row.incident_id is None else " of an incident"
        sentence = f"It gives way to run {row.id}{what} ({plan.summary}). The schedule asks for it again."
        if not await runs.order(session, held.id, order=OrderKind.YIELD, message=sentence):
            return
        now = self._clock.now()
        data = {"plan": held.id, "order": OrderKind.YIELD, "for": row.id}
        await note_plan(session, theirs, kind="order", text=f"Run {held.id}: {sentence}", at=now, data=data)
        text = f"Run {row.id} takes the place of routine run {held.id} ({theirs.action})"
        await note_plan(session, row, kind="order", text=text, at=now, data=data)

    # ------------------------------------------------------------ people

    async def call(self, session: AsyncSession, row: PlanRow, message: str, *, key: str) -> None:
        """A run has stopped and asks: page, and say so where people on call look."""
        text = f"Run {row.id} ({row.action}) has stopped and people must decide: {message}"
        await page(session, text, key=f"run/{row.id}/{key}")
        for channel in dict.fromkeys((self._on_call, row.channel)):
            if channel:
                await outbox.add(session, "text", channel, payload={"text": f"{text} Answer on its card."})


def _held(theirs: PlanRow, held: RunRow) -> str:
    """`run 4KQ (backup.base, running)`."""
    return f"run {held.id} ({theirs.action}, {held.state})"
