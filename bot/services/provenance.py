"""Whether a stored signature is what a person did: every one is derived again from the click or command it rests on.

Slack's clicks and the words of the command line are kept as they arrived, before anything is made of them, and never
change. A signature that says something else than what arrived is not the person's, so its plan is void. What is signed
by key carries its own proof (`bot.services.keys`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from actions.approval import Act, Code, Decision, Person, State
from actions.contract import Asked as HowAsked
from actions.contract import Plan
from bot.ports import Who
from bot.services.keys import SOURCE as BY_KEY
from bot.services.paging import page
from bot.services.policy import Policy, stored
from storage import inbox, outbox, requests, timeline
from storage.tables import InboxRow, PlanRow, SignatureRow

BREAK_GLASS = "break_glass"
"""The key of a request's `reply` that says that its requester wants to act alone."""

ASKED_FOR = "asked for it"
"""The reason of a request that nobody else reads before it runs, where the person gave none."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "slack": ("deed", "desk.slack"),
    "cli": ("desk.cli",),
    "clock": ("schedule",),
}
"""From which kinds of stored rows a signature of each source may come. The database lets each process store its own
kinds alone (`storage.roles`)."""

WHO_WROTE = "Ask for a new plan, and have somebody find out who wrote into the bot's database."

REVIEW = "review"
"""The command that is no request but an act on a plan."""

SKEW = timedelta(minutes=5)
"""How far the clocks of the database and of the process that signed may lie apart."""

IN_HAND = timedelta(minutes=15)
"""How long a click may wait to be carried out."""


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Command(_Read):
    name: str
    params: Mapping[str, Any] = {}
    reason: str = ""
    typed: str = ""
    break_glass: bool = False


class Asked(_Read):
    """A command as it arrived."""

    kind: Literal["ask"]
    who: Who
    command: _Command


class Signed(_Read):
    """A signature, denial or withdrawal as it arrived."""

    kind: Literal["sign"]
    who: Who
    token: str
    act: Act
    digest: str
    typed: str
    reason: str


_ARRIVED: TypeAdapter[Asked | Signed] = TypeAdapter(Annotated[Asked | Signed, Field(discriminator="kind")])

PersonOf = Callable[[Who], Person | None]


def asked(row: PlanRow) -> HowAsked:
    """What the columns of a plan say of how it was asked for."""
    return HowAsked(
        requester=row.requester,
        reason=row.reason,
        channel=row.channel,
        incident=row.incident_id,
        break_glass=row.break_glass,
        policy=row.policy,
        overrules=row.overrules,
        expires_at=row.expires_at.astimezone(UTC),
    )


async def astray(
    session: AsyncSession, row: PlanRow, plan: Plan, signatures: Sequence[SignatureRow], policy: Policy
) -> Decision | None:
    """VOID with the reason when the columns beside a plan are not those that were signed, or do not follow from the
    stored request; None when they do."""
    wrong = _column(row, plan) or _too_long(row, plan, signatures, policy) or await _unasked(session, row, signatures)
    if wrong is None:
        return None
    reason = f"How this plan was asked for is not what was signed: {wrong}. {WHO_WROTE}"
    return Decision(state=State.VOID, reason=reason, code=Code.BAD_PROOF)


def _column(row: PlanRow, plan: Plan) -> str | None:
    if plan.asked is None:
        return "the plan does not say"
    if (row.id, row.action, row.risk) != (plan.id, plan.action, plan.risk):
        return "it stands under another name or risk"
    now = asked(row)
    return next((f"`{name}` is another one" for name in HowAsked.model_fields if _differ(name, now, plan.asked)), None)


def _differ(name: str, now: HowAsked, then: HowAsked) -> bool:
    return bool(getattr(now, name) != getattr(then, name))


def _too_long(row: PlanRow, plan: Plan, signatures: Sequence[SignatureRow], policy: Policy) -> str | None:
    """Under another policy it is void for that reason."""
    since = min((item.at for item in signatures if item.act == Act.REQUEST), default=None)
    if since is None or row.policy != stored(policy.version):
        return None
    return (
        "it waits longer than the policy lets it"
        if row.expires_at > since + policy.approval_expiry(plan) + SKEW
        else None
    )


async def _unasked(session: AsyncSession, row: PlanRow, signatures: Sequence[SignatureRow]) -> str | None:
    """A worker writes plans, and never the requests they come from."""
    told = {item.inbox_key for item in signatures if item.act == Act.REQUEST and item.source != BY_KEY}
    for request in await requests.of_plan(session, row.id):
        follows = (
            request.name == row.action
            and request.person == row.requester
            and request.reason == row.reason
            and request.channel == row.channel
            and request.incident_id == row.incident_id
            and bool(request.reply.get(BREAK_GLASS)) == row.break_glass
        )
        if follows and told <= {request.source_key or ""}:
            return None
    return "no request for it is stored"


async def flaw(
    session: AsyncSession, row: PlanRow, plan: Plan, signatures: Sequence[SignatureRow], person_of: PersonOf
) -> Decision | None:
    """VOID with the reason when a signature does not follow from what is stored; None when each one does."""
    told = [item for item in signatures if item.source != BY_KEY]
    arrived = {item.key: item for item in await inbox.get_all(session, [item.inbox_key for item in told])}
    for signature in told:
        wrong = _difference(row, plan, signature, arrived.get(signature.inbox_key), person_of)
        if wrong is not None:
            said = f"The {signature.act} of {signature.person}"
            reason = f"{said} does not follow from what was received: {wrong}. {WHO_WROTE}"
            return Decision(state=State.VOID, reason=reason, code=Code.BAD_PROOF)
    return None


async def record(session: AsyncSession, row: PlanRow, decision: Decision) -> None:
    """Put the worker's refusal of a plan into the audit record: signatures that cannot be derived again, a policy or a
    roster that changed, whatever makes it void; and a plan whose time is over, signed or not: silence is a no. A denial
    is on record as the signature that it is."""
    if decision.state in (State.VOID, State.EXPIRED) and decision.code not in (None, Code.WITHDRAWN):
        await refuse(session, row, decision.code, decision.reason)


async def tell_unseen(session: AsyncSession, row: PlanRow, decision: Decision, now: datetime) -> None:
    """Say once that a signed plan does not start because nobody has looked at its signers."""
    text = f"Plan {row.id} is signed and does not start yet; missing: {'; '.join(decision.missing)}."
    await _tell_waiting(session, row, Code.UNSEEN, text, now)


async def tell_unmet(session: AsyncSession, row: PlanRow, now: datetime) -> None:
    """Say once that a run waits because no witness has answered this worker yet."""
    text = (
        f"Run {row.id} waits: no witness has answered this worker since it began, so nobody knows whether the bot's "
        "database was restored from a backup and this has run already. It goes on with the first witness that answers; "
        "`drbot doctor` says what each of them lacks."
    )
    await _tell_waiting(session, row, Code.UNWITNESSED, text, now)


async def _tell_waiting(session: AsyncSession, row: PlanRow, code: Code, text: str, now: datetime) -> None:
    """On the card, in the record, and by a page, since Slack may be what is away."""
    new = await timeline.add(
        session,
        incident_id=row.incident_id,
        kind="refusal",
        actor="drbot",
        occurred_at=now,
        text=text,
        data={"plan": row.id, "code": code},
        source_key=f"{code}/{row.id}",
    )
    if not new:
        return
    await refuse(session, row, code, text)
    await outbox.add(session, "plan", row.channel, ref=row.id)
    await page(session, text, key=f"run/{row.id}/{code}")


async def refuse(session: AsyncSession, row: PlanRow, code: Code, text: str) -> None:
    """An audit row for what a worker refuses to do for a plan."""
    await timeline.refuse(session, plan_id=row.id, account="", person="drbot", code=code, text=text)


def _difference(
    row: PlanRow, plan: Plan, signature: SignatureRow, stored: InboxRow | None, person_of: PersonOf
) -> str | None:
    if stored is None:
        return "no click or command is stored for it"
    if stored.kind not in KINDS.get(signature.source, ()):
        return f"what is stored came in as `{stored.kind}`, not by {signature.source}"
    try:
        arrived = _ARRIVED.validate_python(stored.payload)
    except ValidationError:
        return "what is stored cannot be read"
    person = person_of(arrived.who)
    if arrived.who.source != signature.source or (arrived.who.slack_user or arrived.who.person) != signature.account:
        return "the account is another one"
    if person is not None and person.id != signature.person:  # nobody: the roster says so, and it does not count
        return f"the account is {person.name}'s"
    if isinstance(arrived, Asked):
        return _request(row, plan, signature, arrived.command) or _late(signature, stored, waits=True)
    return _act(row, signature, arrived) or _late(signature, stored, waits=False)


def _request(row: PlanRow, plan: Plan, signature: SignatureRow, command: _Command) -> str | None:
    if command.name == REVIEW and signature.act == Act.REVIEW:
        if command.params.get("plan") != row.id:
            return "it was about another plan"
        return _words(signature, reason=str(command.params.get("text")), typed="")
    if signature.act != Act.REQUEST or signature.person != row.requester:
        return "it was a request, and not of this requester"
    if command.name != plan.action:
        return f"`{command.name}` was asked for, not `{plan.action}`"
    if command.break_glass != row.break_glass:
        return "break-glass was asked for" if command.break_glass else "break-glass was not asked for"
    for name, value in command.params.items():
        if value is not None and plan.params.get(name, value) != value:
            return f"`{name}` was another one"
    said = command.reason if command.reason.strip() else ASKED_FOR
    return _words(signature, reason=said, typed=command.typed)


def _act(row: PlanRow, signature: SignatureRow, arrived: Signed) -> str | None:
    if arrived.token != row.token:
        return "it was given to another plan"
    if arrived.act != signature.act:
        return f"it was to {arrived.act}"
    if arrived.digest != signature.digest:
        return "it was given to another version of the plan"
    return _words(signature, reason=arrived.reason, typed=arrived.typed)


def _words(signature: SignatureRow, *, reason: str, typed: str) -> str | None:
    if reason != signature.reason:
        return "the reason is another one"
    return "the typed name is another one" if typed != signature.typed else None


def _late(signature: SignatureRow, stored: InboxRow, *, waits: bool) -> str | None:
    """A request may wait for a worker for as long as it takes; a click is carried out soon or never."""
    since = stored.received_at
    if since is None or signature.at < since - SKEW or (not waits and signature.at > since + IN_HAND + SKEW):
        return "the time is another one"
    return None
