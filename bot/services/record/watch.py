"""What a worker asks of the witnesses: whether they know the same past as the database, and whether they have seen
the signatures of a plan.

A database that was restored from a backup has forgotten which plans have run; the witnesses have not. Nothing is taken
from the database alone: every checkpoint is read at the witness and its signature is checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from actions.approval import Code, Decision, State
from actions.errors import DrError, PermanentError, TemporaryError, UnknownOutcomeError, VerificationError
from actions.ports import Clock
from bot.services.keys import Keys
from bot.services.record.checkpoint import Checkpoint, Consumed, Signed, Trust
from bot.services.record.epochs import BEGUN, starts
from bot.services.record.witness import Witness, checked, newest_of
from storage import record, timeline
from storage.session import Database
from storage.tables import CheckpointRow, PlanRow

log = structlog.get_logger()

LOOK_EVERY = 0.2
"""Seconds between two looks while somebody waits."""

OBJECTIONS = 1.0
"""Seconds that the other witnesses have to tell of another past, once one covers a plan."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A witness as it answers now: its newest checkpoint, or why there is none."""

    witness: str
    checkpoint: Checkpoint | None = None
    problem: str = ""
    answered: bool = True


@dataclass(frozen=True)
class Past:
    """Every checkpoint that the witnesses hold, by number."""

    checkpoints: tuple[Checkpoint, ...]

    @property
    def newest(self) -> Checkpoint | None:
        """The one with the highest number."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def consumed(self) -> list[Consumed]:
        """All plans that are used up."""
        return [item for checkpoint in self.checkpoints for item in checkpoint.consumed]


class Watch:
    """Reads the witnesses for the worker, the doctor and `drbot record`."""

    def __init__(
        self,
        database: Database,
        witnesses: Sequence[Witness],
        trust: Trust,
        clock: Clock,
        *,
        keys: Keys,
        max_age: timedelta,
        patience: timedelta = timedelta(seconds=15),
    ) -> None:
        self._database = database
        self.witnesses = tuple(witnesses)
        self.trust = trust
        self._clock = clock
        self.keys = keys  # of the roster, for the start of a new epoch
        self.max_age = max_age
        self._met = False  # a witness has answered since this process began, or since the database went back
        self._unmet = False  # that is why nothing was let through
        self._highest = 0  # the newest checkpoint of the database when it was last looked at
        self._shown = 0  # the newest checkpoint that any witness has shown to this process
        self._patience = patience  # for the sealer and the witnesses, before a step is refused

    async def look(self) -> list[Sight]:
        """Every witness, asked at the same time."""
        return list(await asyncio.gather(*(self._sight(witness) for witness in self.witnesses)))

    async def _sight(self, witness: Witness) -> Sight:
        try:
            found = await newest_of(witness, self.trust)
        except DrError as error:
            return Sight(witness=witness.name, problem=str(error), answered=False)
        self._shown = max(self._shown, 0 if found is None else found.number)
        return Sight(witness=witness.name, checkpoint=found, problem="" if found else "has no checkpoint yet")

    async def past(self) -> Past:
        """All that the witnesses know. Raises TemporaryError when none of them can be read to the end."""
        checkpoints: dict[str, Checkpoint] = {}
        problems: list[str] = []
        for witness in self.witnesses:
            try:
                async for line in witness.everything():
                    found = checked(line, self.trust)
                    if found is not None:
                        checkpoints[found.body()] = found
            except DrError as error:
                problems.append(str(error))
        if len(problems) == len(self.witnesses):
            raise TemporaryError(f"No witness can be read: {' '.join(problems) or 'the plan names none.'}")
        return Past(tuple(sorted(checkpoints.values(), key=lambda item: item.number)))

    async def disagreement(self) -> str:
        """Why the database's past is not what a witness knows; empty when they agree or no witness answers."""
        sights = await self.look()
        async with self._database.session() as session:
            self._meets(sights, await record.newest(session))
        return await self._disagreement(sights)

    async def number(self) -> int:
        """The number of the database's newest checkpoint. Raises UnknownOutcomeError when a witness has shown a newer
        one to this process, whether it answers now or not."""
        shown = self._shown  # before the database is read: it writes a checkpoint before any witness can hold it
        async with self._database.session() as session:
            epoch, newest = await record.epoch(session), await record.newest(session)
        own = 0 if newest is None else newest.number
        if max(own, epoch.number) < shown:  # what an epoch gives up is counted as known
            raise UnknownOutcomeError(
                f"A witness has shown checkpoint {shown}, this database has only {own}: it was restored from a backup, "
                f"or entries were removed. {NEXT}"
            )
        return own

    async def _disagreement(self, sights: Sequence[Sight]) -> str:
        async with self._database.session() as session:
            unproven = await _unproven(session, self.keys, self.trust)
            if unproven:
                return f"{unproven} No run starts. {NEXT}"
            for sight in sights:
                why = "" if sight.checkpoint is None else await _differs(session, sight.witness, sight.checkpoint)
                if why:
                    return f"{why} No run starts. {NEXT}"
        try:
            await self.number()
        except UnknownOutcomeError as error:
            return f"{error} No run starts."
        return ""

    async def may_claim(self) -> bool:
        """Whether runs may start or be taken over: the witnesses agree, and a new life of the database is sealed.
        Before the first run of this process, and after the database has gone back, one witness must have answered: a
        restored database does not know itself that it is one."""
        sights = await self.look()
        why = await self._disagreement(sights)
        self._unmet = False
        if why:
            log.error("record_disagrees", why=why)
            return False
        async with self._database.session() as session:
            epoch, newest = await record.epoch(session), await record.newest(session)
        self._unmet = not self._meets(sights, newest)
        if self._unmet:
            log.error("no_witness_answers", problems=[sight.problem for sight in sights])
            return False
        return epoch.epoch == 0 or (newest is not None and newest.epoch == epoch.epoch)

    def _meets(self, sights: Sequence[Sight], newest: CheckpointRow | None) -> bool:
        """Whether a witness has vouched for this database since the process began, or since the database went back."""
        number = 0 if newest is None else newest.number
        met = self._met and number >= self._highest
        self._met, self._highest = met or any(self._vouches(sight, newest) for sight in sights), number
        return self._met

    def _vouches(self, sight: Sight, newest: CheckpointRow | None) -> bool:
        """One that holds nothing, or stood still long ago, says nothing about a database that has gone on."""
        if newest is None:
            return sight.answered
        return sight.checkpoint is not None and newest.at - sight.checkpoint.at <= self.max_age

    async def withheld(self, witness: str) -> str:
        """Why this witness is not brought the checkpoints of this database; empty when it is. Filled by a database that
        was restored, it would vouch for it, while the one that knows better does not answer."""
        sights = await self.look()
        away = [sight.witness for sight in sights if not sight.answered]
        async with self._database.session() as session:
            newest = await record.newest(session)
        if not away or self._meets(sights, newest):
            return ""
        return (
            f"Witness `{witness}` holds nothing from the last {self.max_age} of this database, and {', '.join(away)} "
            "may know of a later past: it is brought on as soon as one that is current answers."
        )

    @property
    def unmet(self) -> bool:
        """Whether it was for want of a witness that nothing was let through when it was last asked."""
        return self._unmet

    async def void(self, session: AsyncSession, row: PlanRow, *, started: bool) -> str:
        """Why this plan must not be run (on), although its signatures suffice; empty when it may."""
        if await record.of_earlier_epoch(session, row.id):
            return "The bot's own database was restored after this plan was signed; look at the world and ask again."
        if not started and await record.consumed(session, row.id) is not None:
            return "A witness knows that this plan has run already; ask for a new one."
        return ""

    async def judged(self, session: AsyncSession, row: PlanRow, decision: Decision) -> Decision:
        """The decision on a plan whose signatures suffice, or that it is void."""
        why = await self.void(session, row, started=False)
        return restored(why) if why else decision

    async def covered(self, row: PlanRow) -> None:
        """Return when one witness holds a fresh checkpoint that knows the plan's signatures and that it has started.
        Raises PermanentError when none does in time, UnknownOutcomeError when one of them knows another past."""
        async with self._database.session() as session:
            await record.ask(session)
        until = asyncio.get_running_loop().time() + self._patience.total_seconds()
        while True:
            missing = await self._missing(row)
            if missing is None:
                return
            if asyncio.get_running_loop().time() > until:
                raise PermanentError(
                    f"No witness vouches for the signatures of this plan: {missing} Nothing destructive is done "
                    "without one; look with `drbot doctor`, then ask for a new plan."
                )
            await asyncio.sleep(LOOK_EVERY)

    async def _missing(self, row: PlanRow) -> str | None:
        """None when a witness covers the plan, else what lacks."""
        async with self._database.session() as session:
            signed = await record.last_signature(session, row.id)
            consumed = await record.consumed(session, row.id)
            epoch = (await record.epoch(session)).epoch
        if signed is None or consumed is None:
            return "the sealer has not sealed them; check that `drbot run --role clock` runs."
        lacks: list[str] = []
        covered = False
        looks = {asyncio.create_task(self._sight(witness)) for witness in self.witnesses}
        waiting = looks
        try:
            while waiting:
                # One that hangs must not hold up a step that another one covers; one that answers may object.
                patience = OBJECTIONS if covered else None
                done, waiting = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for sight in (look.result() for look in done):
                    await self._undisputed(sight)
                    why = self._lacks(sight, signed=signed, consumed=consumed.number, epoch=epoch)
                    covered = covered or not why
                    lacks.append(f"`{sight.witness}`: {why.rstrip('.')}")
                if not done:
                    break
        finally:
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
        return None if covered else "; ".join(sorted(lacks)) + "."

    async def _undisputed(self, sight: Sight) -> None:
        """Raises UnknownOutcomeError when this witness knows another past than the database."""
        if sight.checkpoint is None:
            return
        async with self._database.session() as session:
            why = await _differs(session, sight.witness, sight.checkpoint)
        if why:
            raise UnknownOutcomeError(f"{why} {NEXT}")

    def _lacks(self, sight: Sight, *, signed: int, consumed: int, epoch: int) -> str:
        """What this witness lacks to cover a plan; empty when it does."""
        checkpoint = sight.checkpoint
        if checkpoint is None:
            return sight.problem
        if checkpoint.epoch != epoch:
            return f"knows no checkpoint of epoch {epoch}"
        if checkpoint.size <= signed or checkpoint.number < consumed:
            return f"its checkpoint {checkpoint.number} is older than the last signature"
        age = self._clock.now() - checkpoint.at
        if age > self.max_age:
            return f"its newest checkpoint is {_span(age)} old, the plan allows {_span(self.max_age)}"
        return ""


class Footing:
    """What one run has seen of the log since a worker has taken it up: a database that goes back under it has forgotten
    what the run has done."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._seen = 0

    async def holds(self) -> None:
        """Raises UnknownOutcomeError when the database is older than it was, or than a witness has shown."""
        number = await self._watch.number()
        if number < self._seen:
            raise UnknownOutcomeError(
                f"The bot's database has gone back under this run, from checkpoint {self._seen} to {number}: it was "
                f"restored from a backup, or entries were removed. Nothing more is done. {NEXT}"
            )
        self._seen = number


def restored(why: str) -> Decision:
    """A plan that is void for what the witnesses know."""
    return Decision(state=State.VOID, reason=why, code=Code.RESTORED)


NEXT = "See what differs with `drbot timeline verify`; two persons go on with `drbot record adopt`."


async def _differs(session: AsyncSession, witness: str, seen: Checkpoint) -> str:
    """Why the database cannot have written this checkpoint; empty when it has."""
    epoch, own = await record.epoch(session), await record.newest(session)
    there = f"Witness `{witness}` holds checkpoint {seen.number} of epoch {seen.epoch} over {seen.size} entries"
    if seen.epoch < epoch.epoch:
        if seen.number <= epoch.number:
            return ""  # given up when a person started the present epoch
        return f"{there}, which was not known when epoch {epoch.epoch} began."
    if own is None or seen.epoch > epoch.epoch or seen.number > own.number:
        here = "none" if own is None else f"checkpoint {own.number} over {own.size}"
        return f"{there}, this database has {here}: it was restored from a backup, or entries were removed."
    written = await record.numbered(session, seen.number)
    if written is None or written.body != seen.body():
        return f"{there}, this database has another checkpoint {seen.number}: its record was rewritten."
    return ""


async def _unproven(session: AsyncSession, keys: Keys, trust: Trust) -> str:
    """Why the row of the present epoch does not count; empty when it does."""
    row = await record.epoch(session)
    if row.epoch == 0:
        return ""
    first = await record.first_of(session, row.epoch)
    if first is not None:
        # Whoever rules the database can write the row, not what the sealer has signed on the strength of two keys.
        try:
            sealed = trust.check(Signed(body=first.body, signature=first.signature, leaves=b""))
        except VerificationError:
            sealed = None
        if sealed is not None and (sealed.epoch, sealed.base, sealed.number) == (row.epoch, row.base, row.number + 1):
            return ""
        return f"Epoch {row.epoch} of the record is not the one that was sealed."
    notes = await timeline.of_kinds(session, None, (BEGUN,))
    if any(start.holds(keys) for start in starts(notes, row)):
        return ""
    return f"Epoch {row.epoch} of the record was started without the keys of two persons of the roster."


def _span(span: timedelta) -> str:
    return str(timedelta(seconds=round(span.total_seconds())))
