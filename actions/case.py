"""What a decision on signatures rests on, and what it says: values alone, judged by `actions.approval`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum

from actions.contract import Plan
from actions.policy import Method, Person, Rule
from actions.site import Frozen


class Act(StrEnum):
    REQUEST = "request"
    APPROVE = "approve"
    DENY = "deny"
    WITHDRAW = "withdraw"
    REVIEW = "review"  # after a run under break-glass


class Signature(Frozen):
    """One recorded act of one person on one digest. `account` is the Slack account it came from, `looked_at` when Slack
    last told of that account; None: when the act was recorded."""

    person: str
    act: Act
    digest: str
    at: datetime
    typed: str = ""
    reason: str = ""
    method: Method = Method.SLACK
    account: str = ""
    looked_at: datetime | None = None


class Code(StrEnum):
    """Reason codes of refusals, as they stand in the audit record."""

    SELF_APPROVAL = "self_approval"
    NOT_ON_ROSTER = "not_on_roster"
    NO_ROLE = "no_role"
    NOT_IN_GROUP = "not_in_group"
    ALREADY_SIGNED = "already_signed"
    NOT_SIGNED = "not_signed"
    EXPIRED = "expired"
    STALE_REVISION = "stale_revision"
    ALREADY_STARTED = "already_started"
    NOT_STARTED = "not_started"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"
    WRONG_TARGET = "wrong_target"
    WRONG_CHANNEL = "wrong_channel"
    NO_REASON = "no_reason"
    NO_RULE = "no_rule"
    STOPPED = "stopped"
    FROZEN = "frozen"
    NO_PAGER = "no_pager"  # break-glass that nobody outside Slack would hear of
    KEY_REQUIRED = "key_required"
    SLACK_SUSPECT = "slack_suspect"
    POLICY_CHANGED = "policy_changed"
    NOT_RECOVERY = "not_recovery"
    UNREACHABLE = "unreachable"
    UNKNOWN_NAME = "unknown_name"
    NOT_POSSIBLE = "not_possible"  # mistyped, or not now
    NOT_OPTIONAL = "not_optional"  # a step that was signed without saying that it may be left out
    STALE_WORLD = "stale_world"  # the preconditions do not hold any more
    RESTORED = "restored"  # the bot's database was restored since, or a witness knows that the plan has run
    UNWITNESSED = "unwitnessed"  # no witness would have seen the signatures of a destructive plan
    UNDUE_START = "undue_start"  # its run is marked as started at a moment when it could not start
    UNSEEN = "unseen"  # nobody has looked at a signer's Slack account for too long to start on it
    # said by services, which look at how an act came in, before any rule
    UNSIGNED = "unsigned"
    BAD_PROOF = "bad_proof"
    NOT_DECLARED = "not_declared"
    GUEST = "guest"
    FOREIGN = "foreign"
    BOT = "bot"
    DEACTIVATED = "deactivated"
    LOOKUP_FAILED = "lookup_failed"
    SHARED_CHANNEL = "shared_channel"  # people of another organisation read along


class Refusal(Frozen):
    """Why an act changes nothing, and what to do next."""

    code: Code
    text: str


class State(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    VOID = "void"


class Decision(Frozen):
    """Where a plan stands. `missing` names what is still needed, for people."""

    state: State
    signers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    reason: str = ""
    code: Code | None = None  # why it is denied, expired or void
    ready_at: datetime | None = None  # end of the veto period of a break-glass plan
    start_by: datetime | None = None  # when complete signatures grow too old to start on
    unseen: tuple[str, ...] = ()  # persons without whose Slack accounts, not looked at for too long, it cannot start
    review_by: datetime | None = None  # started by one person: two others look at it until then


class BreakGlass(Frozen):
    """One person starts a recovery alone, after a delay in which anybody of the roster may veto."""

    commander: str  # person; the incident commander may do it without a key
    delay: timedelta
    review_within: timedelta  # after the delay
    reviewers: int = 2


class PolicyVersion(Frozen):
    """Digests of the approval policy and of the roster that were in force."""

    rules: str
    roster: str


class Start(Frozen):
    """The start of a run: when it was, by the clock of the bot's database, and the case as it stood under the version
    of the plan file that was in force then."""

    at: datetime
    case: Case


class Case(Frozen):
    """All that a decision rests on. Deadlines, delays, freezes and changes around the plan limit the start, not the
    run: once there is a `start`, they are judged as of that moment."""

    plan: Plan
    requester: str
    rules: tuple[Rule, ...]
    roster: Mapping[str, Person]
    signatures: tuple[Signature, ...]
    expires_at: datetime
    start: Start | None = None
    service: str = ""  # the application the plan acts on
    channels: frozenset[str] = frozenset()  # names of the place where it was asked for
    unwitnessed: bool = False  # nobody outside the bot's database would vouch for its signatures, and somebody must
    seen_within: timedelta | None = None  # how old the last look at a signer's Slack account may be at the start
    slack_suspect_since: datetime | None = None  # acts through Slack do not count, earlier ones neither
    policy_then: PolicyVersion | None = None  # when it was asked for
    policy_now: PolicyVersion | None = None
    break_glass: BreakGlass | None = None
    alone: bool = False  # it was asked for under break-glass, whatever the policy in force says of that
    recovery: bool = False  # the action may be started under break-glass
    overrules: str = ""  # the denied plan that this one replaces, as its message shows
    denied: str = ""  # the newest denied plan that would do the same to the same target
    barred: Mapping[str, str] = {}  # Slack accounts that may not sign now, and why
    groups: Mapping[str, frozenset[str]] = {}  # Slack groups of the plan file: their accounts

    @property
    def started(self) -> bool:
        """Whether the run of the plan has started."""
        return self.start is not None

    @property
    def covering(self) -> tuple[Rule, ...]:
        """The rules that speak of this plan; all of them must be satisfied."""
        return tuple(rule for rule in self.rules if rule.covers(self.plan, self.service))

    @property
    def typed_target(self) -> bool:
        """Whether signers type the name of the target."""
        return any(rule.typed_target for rule in self.covering)

    @property
    def execution_expiry(self) -> timedelta:
        """From the last signature to the start."""
        return min(rule.execution_expiry for rule in self.covering)
