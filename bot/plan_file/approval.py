"""The approval policy: what each risk needs before it runs, and what one person may do alone."""

from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field, model_validator

from actions import policy
from actions.contract import Risk
from actions.policy import minimum_others
from bot.plan_file.values import ActionName, Count, Duration, Flag, Name, Part, Positive, Shape, Text, misfit
from bot.plan_file.windows import Freeze

Place = Annotated[
    str, Shape(r"incident|on_call|[CG][A-Z0-9]{2,}", "use `incident`, `on_call` or a channel's id such as C0123ABCD")
]
GroupId = Annotated[str, Shape(r"S[A-Z0-9]{2,}", "give the id of a Slack user group such as S0123ABCD")]

_SHORTEST_SIGHT = timedelta(minutes=2)
_SHORTEST_DELAY = timedelta(minutes=1)


class Slot(Part):
    """Persons of one role among the signers. One person fills at most one slot."""

    role: Name
    """A role of the roster."""
    count: Positive = 1
    """How many persons of it."""
    slack_group: GroupId | None = None
    """Slack user group that a signature from Slack must come from as well; being in it alone gives no right."""


class ApprovalRule(Part):
    """What the plans of one risk need before they run. A plan must satisfy every rule that covers it."""

    risk: Risk
    """The risk the rule is for."""
    actions: tuple[ActionName, ...] = ()
    """Only these actions; empty: all."""
    targets: tuple[Text, ...] = ()
    """Only these targets, as a signer types them; empty: all."""
    services: tuple[Name, ...] = ()
    """Only what concerns these services or their databases; empty: all."""
    channels: tuple[Place, ...] = ()
    """Where it may be asked for: `incident`, `on_call`, channel ids; empty: everywhere."""
    persons_besides_requester: Count
    """Signatures of other persons; the request itself is the requester's signature."""
    slots: tuple[Slot, ...] = ()
    """Roles that must be among all signers, the requester included."""
    key_required: Flag = False
    """Whether one of the signatures must be made with a key of the roster (`drbot sign`)."""
    approval_expiry: Duration
    """Time from the request until the last signature; silence is a refusal."""
    execution_expiry: Duration
    """Time from the last signature until the run starts; later it asks again."""
    typed_target: Flag = False
    """Whether signers type the name of what is replaced."""
    freezes: tuple[Freeze, ...] = ()
    """Times in which nothing that the rule covers starts."""

    @property
    def scoped(self) -> bool:
        """Whether the rule covers only a part of the plans of its risk."""
        return bool(self.actions or self.targets or self.services)

    @model_validator(mode="after")
    def never_under_two_persons(self) -> Self:
        """Policy may raise the defaults of the architecture, never lower them."""
        fewest = minimum_others(self.risk)
        if self.persons_besides_requester < fewest:
            raise misfit(
                f"{self.risk} needs at least {fewest + 1} persons",
                f"set `persons_besides_requester` to {fewest} or more",
            )
        if self.risk in (Risk.DESTRUCTIVE, Risk.IRREVERSIBLE) and not self.typed_target:
            raise misfit(f"{self.risk} needs the name of the target typed", "set `typed_target: true`")
        if sum(slot.count for slot in self.slots) > self.persons_besides_requester + 1:
            raise misfit(
                f"the slots ask for {sum(slot.count for slot in self.slots)} persons, but only "
                f"{self.persons_besides_requester + 1} sign",
                "raise `persons_besides_requester`",
            )
        return self

    def rule(self) -> policy.Rule:
        """The rule as it is decided by."""
        return policy.Rule(
            risk=self.risk,
            others=self.persons_besides_requester,
            slots=tuple(
                policy.Slot(roles=frozenset({slot.role}), count=slot.count, group=slot.slack_group or "")
                for slot in self.slots
            ),
            typed_target=self.typed_target,
            actions=self.actions,
            targets=self.targets,
            services=self.services,
            channels=self.channels,
            key_required=self.key_required,
            freezes=tuple(freeze.window() for freeze in self.freezes),
            approval_expiry=self.approval_expiry,
            execution_expiry=self.execution_expiry,
        )


class BreakGlass(Part):
    """How one person with a key, or the incident commander, starts a recovery alone. Never for IRREVERSIBLE plans."""

    delay: Duration
    """Time in which anybody of the roster may veto; at least 1m."""
    review_within: Duration
    """Time after the delay until the review is complete; from then on it is asked for again and again."""
    reviewers: Positive = 2
    """How many other persons must review the run; at least 2."""

    @model_validator(mode="after")
    def leaves_time_for_a_veto(self) -> Self:
        """One person alone is the exception: others must be able to stop it, and must look at it."""
        if self.delay < _SHORTEST_DELAY:
            raise misfit("this leaves no time for a veto", "set `delay` to 1m or more")
        if self.reviewers < 2:
            raise misfit("two persons review what one has started alone", "set `reviewers` to 2 or more")
        return self


class Approval(Part):
    """The approval policy. A plan that no rule covers is refused."""

    rules: tuple[ApprovalRule, ...] = Field(min_length=1)
    """One rule for each risk, and more for some of its actions, targets or services; all that cover a plan apply."""
    break_glass: BreakGlass | None = None
    """What one person may do alone; without it, nothing."""
    unwitnessed: Flag = False
    """Whether DESTRUCTIVE and IRREVERSIBLE plans run without a `record`: nobody vouches for their signatures."""
    seen_within: Duration = timedelta(minutes=15)
    """How old Slack's word on the account of a signer may be when the run starts; at least 2m. A key needs none."""

    @model_validator(mode="after")
    def leaves_time_for_a_look(self) -> Self:
        """The roster is looked at once a minute."""
        if self.seen_within < _SHORTEST_SIGHT:
            raise misfit("accounts are looked at once a minute", "set `seen_within` to 2m or more")
        return self
