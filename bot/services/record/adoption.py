"""Going on after the bot's own database was restored from a backup.

The database has forgotten what the witnesses know. Two persons sign with their keys which past is given up and which
is kept; the sealer compares that with what it sees itself and starts a new epoch of the log: every plan signed before
is void, and what the witnesses know as used up stays so. Nothing of the past is thrown away, here or there.
"""

from __future__ import annotations

from actions.approval import Code
from actions.errors import UserError
from actions.merkle import CompactRange
from actions.ports import Clock
from bot.services.policy import Policy
from bot.services.record.checkpoint import Checkpoint
from bot.services.record.epochs import ADOPT, ADOPTERS, BEGUN, SIGNED, Facts, adoption_claim, signers
from bot.services.record.watch import Past, Watch
from bot.services.statements import Proof, Statement, statement
from storage import record, timeline
from storage.session import Database
from storage.tables import LogEpoch

AGREED = "The witnesses and the database know the same past; there is nothing to adopt."


class Adoption:
    """`drbot record adopt`: what a person signs, and its record."""

    def __init__(self, database: Database, watch: Watch, policy: Policy, clock: Clock) -> None:
        self._database = database
        self._watch = watch
        self._policy = policy
        self._clock = clock

    async def statement(self, person: str, reason: str) -> tuple[str, Statement]:
        """The two pasts in words, and what this person signs about them. Raises UserError when there is nothing to
        adopt; a refusal is recorded."""
        if person not in self._policy.roster:
            text = f"`{person}` is not on the roster, so nothing was done. Ask a person who is."
            await self._refuse(person, Code.NOT_ON_ROSTER, text)
        if not reason.strip():
            raise UserError('Say why, for the record: `drbot record adopt --reason "restored after the disk failed"`.')
        facts = await facts_of(self._database, self._watch)
        said = statement(
            act=ADOPT, subject=facts.subject, digest=facts.digest, person=person, reason=reason, at=self._clock.now()
        )
        return _words(facts), said

    async def hand_in(self, person: str, proof: Proof) -> str:
        """Record a signed statement; the sentence for the signer. Raises UserError for one that does not count."""
        facts, now = await facts_of(self._database, self._watch), self._clock.now()
        claim = adoption_claim(facts, person=person, reason=proof.statement.reason, at=now)
        async with self._database.session() as session:
            known = signers(await timeline.of_kinds(session, None, (SIGNED,)), facts, self._policy.keys, now)
        if person in known:
            text = "Your signature is already recorded; a second person must sign with a key of their own."
            await self._refuse(person, Code.ALREADY_SIGNED, text)
        wrong = self._policy.keys.problem(claim, proof.text)
        if person not in self._policy.roster or wrong:
            await self._refuse(person, Code.BAD_PROOF, f"This signature does not count: {wrong}.")
        name = self._policy.name(person)
        async with self._database.session() as session:
            await timeline.add(
                session,
                incident_id=None,
                kind=SIGNED,
                actor=name,
                occurred_at=now,
                text=f"{name} has signed that epoch {facts.epoch} of the record may begin: {proof.statement.reason}. "
                f"{_words(facts)}",
                data={"epoch": facts.epoch, "person": person, "proof": proof.text},
            )
        if len(known) + 1 < ADOPTERS:
            return "Your signature is recorded; a second person must run the same command with a key of their own."
        return f"Both signatures are recorded; the sealer starts epoch {facts.epoch}. Every plan signed before is void."

    async def _refuse(self, person: str, code: Code, text: str) -> None:
        async with self._database.session() as session:
            await timeline.refuse(session, plan_id=None, account=person, person=person, code=code, text=text)
        raise UserError(text)


async def begin(database: Database, watch: Watch, clock: Clock) -> bool:
    """Start the epoch that two persons have signed for; False when they have not. By the sealer, which finds the facts
    itself. Raises TemporaryError while no witness can be read."""
    async with database.session() as session:
        entries = await timeline.of_kinds(session, None, (SIGNED,))
    if len(entries) < ADOPTERS:
        return False
    try:
        facts = await facts_of(database, watch)
    except UserError:
        return False
    now = clock.now()
    proofs = signers(entries, facts, watch.keys, now)
    if len(proofs) < ADOPTERS:
        return False
    persons = sorted(proofs)[:ADOPTERS]
    async with database.session() as session:
        own = await record.newest(session)
        unchanged = (0 if own is None else own.size) == facts.kept_size
        if not (await record.hold(session) and unchanged and (await record.epoch(session)).epoch < facts.epoch):
            return False
        row = LogEpoch(
            epoch=facts.epoch,
            base=facts.base,
            number=facts.number,
            person=", ".join(persons),
            reason=Proof.of(proofs[persons[0]]).statement.reason,
        )
        await record.begin_epoch(session, row)
        await timeline.add(
            session,
            incident_id=None,
            kind=BEGUN,
            actor="drbot",
            occurred_at=now,
            text=f"Epoch {row.epoch} of the record began, signed by {row.person}: {row.reason}. {_words(facts)}",
            data={"epoch": row.epoch, "facts": facts.text, "proofs": [proofs[person] for person in persons]},
        )
    return True


async def facts_of(database: Database, watch: Watch) -> Facts:
    """The two pasts as they are now. Raises UserError when they are one, TemporaryError when no witness is there."""
    if not await watch.disagreement():
        raise UserError(AGREED)
    past = await watch.past()
    newest = past.newest
    if newest is None:
        raise UserError(AGREED)
    base = await _common(database, past)
    async with database.session() as session:
        epoch, own = await record.epoch(session), await record.newest(session)
    return Facts(
        epoch=max(epoch.epoch, newest.epoch) + 1,
        base=base,
        number=max(newest.number, 0 if own is None else own.number),
        given_up=newest.number,
        given_up_size=newest.size,
        given_up_root=newest.root,
        kept_size=0 if own is None else own.size,
        kept_root=(CompactRange().root if own is None else own.root).hex(),
    )


def _words(facts: Facts) -> str:
    lost, other = max(0, facts.given_up_size - facts.base), facts.kept_size - facts.base
    return (
        f"The witnesses and this database agree on {facts.base} entries. {lost} more that the witnesses know are given "
        f"up; {other} that only this database knows are kept. Every plan signed before is void."
    )


async def _common(database: Database, past: Past) -> int:
    """How many leaves the newest line of checkpoints and this database agree on."""
    agreed, grown = 0, CompactRange()
    for checkpoint in _line(past):
        if checkpoint.size > grown.size:
            async with database.session() as session:
                grown.extend(await record.hashes(session, grown.size, checkpoint.size))
        if grown.size != checkpoint.size or grown.root.hex() != checkpoint.root:
            break
        agreed = checkpoint.size
    return agreed


def _line(past: Past) -> list[Checkpoint]:
    """The checkpoints that the newest one grew from, smallest first: of an earlier epoch only those up to the base of
    the next."""
    line: list[Checkpoint] = []
    for checkpoint in past.checkpoints:
        if line and checkpoint.epoch != line[-1].epoch:
            line = [item for item in line if item.size <= checkpoint.base]
        line.append(checkpoint)
    return line
