"""Who must sign, purely: state in, decision out. No applicable rule means no.

A signature belongs to a person, not to an account, and fills at most one seat of all rules together. The request is the
requester's own signature. `admit` judges one act before it is recorded, `decide` judges all recorded acts of a plan;
the worker calls `decide` again before it starts anything and before every step.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime

from actions.case import (
    Act,
    BreakGlass,
    Case,
    Code,
    Decision,
    PolicyVersion,
    Refusal,
    Signature,
    Start,
    State,
)
from actions.contract import Risk
from actions.policy import (
    Method,
    Once,
    Person,
    Rule,
    Signer,
    Slot,
    Weekly,
    Window,
    frozen,
    joint,
    lacking,
    minimum_others,
    others_needed,
    seats,
    shortfall,
    unfilled,
)
from actions.sightings import Counted, asked_for, seen

__all__ = [
    "Act",
    "BreakGlass",
    "Case",
    "Code",
    "Decision",
    "Method",
    "Once",
    "Person",
    "PolicyVersion",
    "Refusal",
    "Rule",
    "Signature",
    "Signer",
    "Slot",
    "Start",
    "State",
    "Weekly",
    "Window",
    "admit",
    "decide",
    "joint",
    "minimum_others",
    "others_needed",
    "reviewers",
    "seats",
    "shortfall",
    "standing",
    "unfilled",
]


_SIGNING = (Act.REQUEST, Act.APPROVE)

_RANK = {Act.REVIEW: 0, Act.REQUEST: 0, Act.APPROVE: 1, Act.WITHDRAW: 2, Act.DENY: 3}
"""Which of two acts of one instant comes later: the one that permits less."""


def standing(signatures: Sequence[Signature], digest: str) -> dict[str, tuple[Signature, ...]]:
    """What every person holds up on this digest: a denial, or the signatures since the last withdrawal. A denial
    stays whatever the same person clicks later; a further signature never takes an earlier one away."""
    held: dict[str, tuple[Signature, ...]] = {}
    for signature in sorted(signatures, key=lambda item: (item.at, _RANK[item.act], item.person)):
        before = held.get(signature.person, ())
        if signature.digest != digest or any(item.act is Act.DENY for item in before):
            continue
        if signature.act is Act.WITHDRAW:
            held[signature.person] = ()
        elif signature.act is Act.DENY:
            held[signature.person] = (signature,)
        elif signature.act is not Act.REVIEW:
            held[signature.person] = (*before, signature)
    return {person: items for person, items in held.items() if items}


def decide(case: Case, now: datetime) -> Decision:
    """Where the plan stands now, and whether a run that has started may go on: its signatures must count now, and must
    have sufficed for the start when that was. Who can write into the bot's database could mark any plan as started."""
    decision = _standing(case, now)
    if case.start is None or decision.state is not State.APPROVED:
        return decision
    then = _standing(case.start.case, case.start.at)
    if then.state is State.APPROVED:
        return decision
    why = then.reason or f"Missing was {', '.join(then.missing)}."
    text = f"Its run is marked as started at {_clock(case.start.at)}, when it could not start. {why} "
    text += "Have somebody find out who wrote into the bot's database."
    return Decision(state=State.VOID, reason=text, code=Code.UNDUE_START)


def _standing(case: Case, now: datetime) -> Decision:
    """Deny wins over everything but a void plan. There are two deadlines: one for the signatures, and, from the last of
    them, one for the start; a plan that waited long is not started on old words."""
    void = _void(case)
    if void is not None:
        return Decision(state=State.VOID, reason=void.text, code=void.code)
    held = standing(_heard(case), case.plan.digest)
    denials = [item for items in held.values() for item in items if item.act is Act.DENY and item.person in case.roster]
    if denials:
        names = ", ".join(_name(case, item.person) for item in denials)
        return Decision(
            state=State.DENIED, reason=f"Denied by {names}: {denials[0].reason or 'no reason'}.", code=Code.DENIED
        )
    if _taken_back(case, held):
        text = f"{_name(case, case.requester)} has withdrawn the request."
        return Decision(state=State.VOID, reason=text, code=Code.WITHDRAWN)
    counted = _counted(case, held)
    signers, missing = tuple(sorted(counted)), _missing(case, counted)
    fresh = seen(case, counted, now)
    unseen = tuple(person for person in signers if person not in fresh)
    alone = None if case.break_glass is None else _alone(case, case.break_glass, counted)
    # Complete signatures need no glass; where nobody has looked at them lately, who may act alone still does.
    if not missing and (alone is None or not _missing(case, fresh)):
        complete = max(item.at for items in counted.values() for item in items if item.at < case.expires_at)
        approved = Decision(state=State.APPROVED, signers=signers, unseen=unseen if _missing(case, fresh) else ())
        return _startable(case, now, approved, complete, counted)
    if case.break_glass is not None and alone is not None:
        blind = unseen if _alone(case, case.break_glass, fresh) is None else ()
        approved = Decision(state=State.APPROVED, signers=signers, unseen=blind)
        return _under_glass(case, case.break_glass, now, approved, alone.at, counted)
    if now >= case.expires_at and not case.started:
        return Decision(
            state=State.EXPIRED,
            reason="This plan has expired: nobody completed the signatures in time. Ask for it again.",
            code=Code.EXPIRED,
        )
    if case.break_glass is not None:
        or_else = "" if _key_required(case) else ", or as the incident commander"
        missing = (f"the requester's signature with a key{or_else}",)
    return Decision(state=State.PENDING, signers=signers, missing=missing)


def reviewers(case: Case) -> tuple[str, ...]:
    """The persons besides the requester who have reviewed a run under break-glass."""
    return tuple(
        sorted(
            {
                item.person
                for item in _heard(case)
                if item.act is Act.REVIEW
                and item.digest == case.plan.digest
                and item.person in case.roster
                and item.person != case.requester
                and item.method is not Method.HOST
            }
        )
    )


def _void(case: Case) -> Refusal | None:
    """Why nobody's signature can make this plan run."""
    if not case.covering:
        return Refusal(code=Code.NO_RULE, text=f"No approval rule covers {case.plan.risk}; change the plan file first.")
    if case.plan.stopped:
        text = f"{case.plan.stopped[0].detail} Ask for a new plan once this is put right."
        return Refusal(code=Code.STOPPED, text=text)
    if case.break_glass is not None and (not case.recovery or case.plan.risk is Risk.IRREVERSIBLE):
        text = f"Break-glass is for recovery alone, and `{case.plan.action}` is none; ask for it with all signatures."
        return Refusal(code=Code.NOT_RECOVERY, text=text)
    return None if case.started else _outdated(case)


def _outdated(case: Case) -> Refusal | None:
    """What has changed around a plan that has not started."""
    if case.policy_then != case.policy_now:
        then, now = case.policy_then, case.policy_now
        same_roster = then is not None and now is not None and then.roster == now.roster
        same_rules = then is not None and now is not None and then.rules == now.rules
        what = "approval policy has" if same_roster else "roster has" if same_rules else "policy and the roster have"
        text = f"The {what} changed since this plan was asked for, so its signatures are void; ask for it again."
        return Refusal(code=Code.POLICY_CHANGED, text=text)
    if case.unwitnessed and case.plan.risk in (Risk.DESTRUCTIVE, Risk.IRREVERSIBLE):
        text = f"The plan file names no `record`, so no witness would vouch for the signatures of a {case.plan.risk}"
        text += " plan. Have a plan file with `record` activated (`drbot plan activate`), then ask for this again."
        return Refusal(code=Code.UNWITNESSED, text=text)
    if case.denied and case.denied != case.overrules:
        text = f"Plan {case.denied} for the same was denied meanwhile; ask for a new plan, which will show that."
        return Refusal(code=Code.DENIED, text=text)
    for rule in case.covering if case.break_glass is None else ():
        if rule.channels and not case.channels & set(rule.channels):
            text = f"This is not allowed in this channel; ask for it in {' or '.join(rule.channels)}."
            return Refusal(code=Code.WRONG_CHANNEL, text=text)
    return None


def _heard(case: Case) -> tuple[Signature, ...]:
    """The acts that are listened to at all. While Slack is suspect, nothing that came through it is, except a denial
    from before: what had ended then does not come back to life."""
    since = case.slack_suspect_since
    return tuple(
        item
        for item in case.signatures
        if since is None or item.method is not Method.SLACK or (item.act is Act.DENY and item.at < since)
    )


def _taken_back(case: Case, held: Mapping[str, Sequence[Signature]]) -> bool:
    return case.requester not in held and any(
        item.person == case.requester and item.act is Act.WITHDRAW and item.digest == case.plan.digest
        for item in _heard(case)
    )


def _counted(case: Case, held: Mapping[str, Sequence[Signature]]) -> dict[str, tuple[Signature, ...]]:
    """The signatures that count, by person: of the roster, in time, with the target typed where a rule asks."""
    alone = others_needed(case.covering, case.plan.risk) == 0
    counted = {
        person: tuple(
            item
            for item in items
            if (item.at < case.expires_at or _again_by_key(item, items, case.expires_at))
            and (item.act is Act.REQUEST) == (person == case.requester)
            and (item.method is not Method.HOST or alone)
            and (item.method is not Method.SLACK or item.account not in case.barred)
            and (not case.typed_target or item.typed == case.plan.target)
        )
        for person, items in held.items()
        if person in case.roster
    }
    return {person: items for person, items in counted.items() if items}


def _again_by_key(item: Signature, items: Sequence[Signature], until: datetime) -> bool:
    """Who has signed in time may say so again with a key until the start: nobody can look at Slack accounts while Slack
    is away."""
    return item.method is Method.KEY and any(other.at < until for other in items)


def _missing(case: Case, counted: Mapping[str, Sequence[Signature]]) -> tuple[str, ...]:
    own = () if case.requester in counted else ("the requester's own signature",)
    signers = [_signer(case, person, items) for person, items in sorted(counted.items())]
    return own + lacking(case.covering, case.plan.risk, signers, others=len(counted.keys() - {case.requester}))


def _signer(case: Case, person: str, items: Sequence[Signature]) -> Signer:
    accounts = {item.account for item in items if item.method is Method.SLACK}
    return Signer(
        person=case.roster[person],
        methods=frozenset(item.method for item in items),
        groups=frozenset(group for group, members in case.groups.items() if accounts & members),
    )


def _startable(case: Case, now: datetime, approved: Decision, since: datetime, counted: Counted) -> Decision:
    """An approved plan, unless its signatures are too old, a freeze holds, or nobody has looked at its signers."""
    start_by = since + case.execution_expiry
    if case.started:
        return approved
    if now >= start_by:
        text = "This plan has expired: it was signed, but could not start in time. Ask for it again."
        if approved.unseen:
            text += " Nobody had looked at the Slack accounts of its signers: sign with keys while Slack is away."
        return Decision(state=State.EXPIRED, reason=text, code=Code.EXPIRED)
    held = _freeze(case, now)
    if held is not None:
        return Decision(state=State.PENDING, signers=approved.signers, missing=(_until(*held),), start_by=start_by)
    if approved.unseen:
        missing = asked_for(case, approved.unseen, counted)
        return approved.model_copy(update={"state": State.PENDING, "missing": missing, "start_by": start_by})
    return approved.model_copy(update={"start_by": start_by})


def _freeze(case: Case, now: datetime) -> tuple[Window, datetime] | None:
    """A freeze is for what can wait; what is done under break-glass cannot."""
    return frozen(case.covering, now) if case.break_glass is None else None


def _alone(case: Case, glass: BreakGlass, counted: Mapping[str, Sequence[Signature]]) -> Signature | None:
    """The first signature that starts a recovery alone: the requester's, with a key or as the incident commander. Where
    a rule asks for a key, it does so of the commander too: the account alone is what may have been stolen."""
    for item in counted.get(case.requester, ()):
        commands = item.method is Method.SLACK and item.person == glass.commander and not _key_required(case)
        entitled = item.method is Method.KEY or commands
        if entitled and item.reason.strip():
            return item
    return None


def _key_required(case: Case) -> bool:
    return any(rule.key_required for rule in case.covering)


def _under_glass(
    case: Case, glass: BreakGlass, now: datetime, approved: Decision, requested_at: datetime, counted: Counted
) -> Decision:
    ready_at = requested_at + glass.delay
    facts = approved.model_copy(update={"ready_at": ready_at, "review_by": ready_at + glass.review_within})
    if now < ready_at and not case.started:
        missing = (f"the end of the veto period at {_clock(ready_at)}",)
        return facts.model_copy(update={"state": State.PENDING, "missing": missing, "unseen": ()})
    return _startable(case, now, facts, ready_at, counted)


def admit(
    case: Case,
    person: str | None,
    act: Act,
    *,
    digest: str,
    typed: str,
    reason: str,
    now: datetime,
    method: Method = Method.SLACK,
    account: str = "",
) -> Refusal | None:
    """Whether this act may be recorded as a signature; the refusal says what to do next."""
    if person is None or person not in case.roster:
        return Refusal(
            code=Code.NOT_ON_ROSTER,
            text="You are not on the roster of the plan file, so your signature does not count. Ask a person who is.",
        )
    unheard = _unheard(case, act, method)
    if unheard is not None:
        return unheard
    if digest != case.plan.digest:
        return Refusal(code=Code.STALE_REVISION, text="This plan was replaced; sign the newest message instead.")
    if act is Act.REVIEW:
        return _admit_review(case, person, reason)
    if case.started:
        return Refusal(
            code=Code.ALREADY_STARTED,
            text="The run has started, so signatures change nothing any more; follow it on its message.",
        )
    over = _over(case, now)
    if over is not None:
        return over
    new = Signature(
        person=person, act=act, digest=digest, at=now, typed=typed, reason=reason, method=method, account=account
    )
    if act is Act.WITHDRAW and person not in standing(_heard(case), digest):
        return Refusal(code=Code.NOT_SIGNED, text="You hold no signature on this plan, so there is none to withdraw.")
    return _admit_signature(case, new) if act in _SIGNING else None


def _unheard(case: Case, act: Act, method: Method) -> Refusal | None:
    """Why nothing is taken that comes this way."""
    if case.slack_suspect_since is not None and method is Method.SLACK:
        text = "Slack is under suspicion, so signatures from it do not count; use `drbot sign`."
        return Refusal(code=Code.SLACK_SUSPECT, text=text)
    if method is Method.HOST and act in (Act.APPROVE, Act.REVIEW):
        return Refusal(code=Code.UNSIGNED, text="A shell signs for nobody; use `drbot sign` with a key of the roster.")
    return None


def _over(case: Case, now: datetime) -> Refusal | None:
    """Why nobody can sign this plan any more."""
    decision = decide(case, now)
    if decision.code is None:
        return None
    hint = " Only a new plan can overrule this." if decision.state is State.DENIED else ""
    return Refusal(code=decision.code, text=decision.reason + hint)


def _admit_review(case: Case, person: str, reason: str) -> Refusal | None:
    # A policy that drops break-glass drops no review of what was started under it.
    if not (case.alone or case.break_glass is not None) or not case.started:
        text = "Only a run that was started under break-glass is reviewed, once it has started."
        return Refusal(code=Code.NOT_STARTED, text=text)
    if person == case.requester:
        return Refusal(code=Code.SELF_APPROVAL, text="You started this run; two other persons must review it.")
    if person in reviewers(case):
        return Refusal(code=Code.ALREADY_SIGNED, text="Your review is already recorded; nothing was added.")
    return None if reason.strip() else _NO_REASON


_NO_REASON = Refusal(code=Code.NO_REASON, text="A signature needs a reason; type one line and send it again.")


def _admit_signature(case: Case, new: Signature) -> Refusal | None:
    if new.act is Act.APPROVE and new.person == case.requester:
        return Refusal(
            code=Code.SELF_APPROVAL,
            text="Your request is already your signature; one other person must approve.",
        )
    held_up = standing(_heard(case), case.plan.digest).get(new.person, ())
    # Whoever has clicked may sign with a key as well: a rule may ask for one.
    if held_up and (new.method is not Method.KEY or any(item.method is Method.KEY for item in held_up)):
        return Refusal(code=Code.ALREADY_SIGNED, text="Your signature is already recorded; nothing was added.")
    if new.account in case.barred and new.method is Method.SLACK:
        return Refusal(code=Code.DEACTIVATED, text=case.barred[new.account])
    if (held := _freeze(case, new.at)) is not None:
        return Refusal(code=Code.FROZEN, text=f"Nothing of this kind starts before {_until(*held)}; ask again then.")
    if not new.reason.strip():
        return _no_reason(case, new) if new.act is Act.REQUEST else _NO_REASON
    if case.typed_target and new.typed != case.plan.target:
        wrong = "The typed name does not match the target" if new.typed else "The name of the target was not typed"
        how = "type exactly" if new.typed else f"add `--target {shlex.quote(case.plan.target)}` to the command, or type"
        return Refusal(code=Code.WRONG_TARGET, text=f"{wrong}; {how} `{case.plan.target}`.")
    return _admit_request(case, new) if new.act is Act.REQUEST else _useless(case, new)


def _no_reason(case: Case, new: Signature) -> Refusal:
    """All that a request lacks at once, as it is typed."""
    target = f" --target {shlex.quote(case.plan.target)}" if case.typed_target and new.typed != case.plan.target else ""
    return _NO_REASON.model_copy(
        update={"text": f'A signature needs a reason. Send it again with `--reason "WHY"{target}` at its end.'}
    )


def _admit_request(case: Case, new: Signature) -> Refusal | None:
    """Refuse what can never be completed, when it is asked for."""
    needed = others_needed(case.covering, case.plan.risk)
    if new.method is Method.HOST and needed > 0:
        text = "A request of this risk is a signature, which the command line and the schedule cannot give by"
        return Refusal(code=Code.UNSIGNED, text=f"{text} themselves; ask in Slack, or add `--sign KEY` with your key.")
    if case.break_glass is not None:
        if _alone(case, case.break_glass, {new.person: (new,)}) is None:
            wanted = "; a rule of this plan asks for one"
            unless = wanted if _key_required(case) else ", unless you are the incident commander"
            text = f"Break-glass needs your key (`drbot break-glass`){unless}."
            return Refusal(code=Code.KEY_REQUIRED, text=text)
        return None
    able = dict(case.roster)
    if case.slack_suspect_since is not None:
        able = {name: item.model_copy(update={"means": item.means - {Method.SLACK}}) for name, item in able.items()}
    able[new.person] = able[new.person].model_copy(update={"means": able[new.person].means | {new.method}})
    missing = shortfall(case.covering, case.plan.risk, able.values())
    if missing:
        text = f"Nobody can complete these signatures; the roster lacks {'; '.join(missing)}."
        return Refusal(code=Code.UNREACHABLE, text=f"{text} Add persons to it, or lower what the rule asks.")
    return None


def _useless(case: Case, new: Signature) -> Refusal | None:
    """Refuse an approval that brings the plan no nearer: every signature still missing must come from somebody else."""
    counted = _counted(case, standing(_heard(case), case.plan.digest))
    if new.person in counted:
        return None  # a key beside a click that counts: it needs no look at the account
    before = [_signer(case, person, items) for person, items in sorted(counted.items())]
    own = _signer(case, new.person, (new,))
    to_come = others_needed(case.covering, case.plan.risk) - len(counted.keys() - {case.requester}) - 1
    lacks_key = not any(Method.KEY in signer.methods for signer in before)
    if lacks_key and new.method is Method.KEY and _key_required(case):
        return None
    slots = joint(case.covering)
    left = unfilled(slots, [*before, own])
    if len(left) < len(unfilled(slots, before)) or len(left) <= max(0, to_come):
        return None  # it takes a seat, or others are to come for each that is left
    wanted = " and ".join(sorted({slot.words for slot in left}))
    if any(slot.roles & own.person.roles for slot in left):
        text = f"Your account is not in the Slack group this needs: {wanted}. Sign with a key, or ask one of them."
        return Refusal(code=Code.NOT_IN_GROUP, text=text)
    return Refusal(code=Code.NO_ROLE, text=f"This plan needs a signature of {wanted}; ask one of them.")


def _until(freeze: Window, end: datetime) -> str:
    return f"the end of the freeze{f' ({freeze.reason})' if freeze.reason else ''} at {_clock(end)}"


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _name(case: Case, person: str) -> str:
    return case.roster[person].name if person in case.roster else person
