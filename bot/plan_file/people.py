"""Who may do what: channels, approval policy and roster."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from actions.approval import minimum_others
from actions.contract import Risk
from bot.plan_file.values import Count, Duration, Flag, Name, Part, Positive, Shape, Text, misfit

SlackId = Annotated[
    str,
    Shape(r"[UW][A-Z0-9]{2,}", "give a Slack member id such as U0123ABCD (profile, three dots, Copy member ID)"),
]
WorkspaceId = Annotated[str, Shape(r"[TE][A-Z0-9]{2,}", "give a Slack workspace id such as T0123ABCD")]
ChannelRef = Annotated[
    str,
    Shape(
        r"[CG][A-Z0-9]{2,}|#?[^\sA-Z#,.]{1,80}",
        'give a channel as an id (C0123ABCD) or a name ("#dr-oncall", in quotes)',
    ),
]
"""A channel's id (C0123ABCD) or name (#dr-oncall)."""


class Channels(Part):
    """Where the bot speaks."""

    on_call: ChannelRef
    """Channel of reminders and warnings."""
    incident_prefix: Annotated[
        str, Shape(r"[a-z0-9][a-z0-9_-]{0,30}", "use lower case letters, digits, `_` and `-`, at most 31")
    ] = "dr-inc-"
    """Beginning of the names of channels made for incidents."""
    audit: ChannelRef
    """Channel every signature and refusal is copied to."""


class Slot(Part):
    """Persons of one role among the signers. One person fills at most one slot."""

    role: Name
    """A role of the roster."""
    count: Positive = 1
    """How many persons of it."""


class ApprovalRule(Part):
    """What the plans of one risk need before they run."""

    risk: Risk
    """The risk the rule is for."""
    persons_besides_requester: Count
    """Signatures of other persons; the request itself is the requester's signature."""
    slots: tuple[Slot, ...] = ()
    """Roles that must be among all signers, the requester included."""
    approval_expiry: Duration
    """Time from the request until the last signature; silence is a refusal."""
    execution_expiry: Duration
    """Time from the last signature until the run starts; later it asks again."""
    typed_target: Flag = False
    """Whether signers type the name of what is replaced."""

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


class Approval(Part):
    """The approval policy. A risk without a rule is refused."""

    rules: tuple[ApprovalRule, ...] = Field(min_length=1)
    """One rule for each risk."""


class Person(Part):
    """A person of the roster. Signatures count persons, not Slack accounts."""

    id: Name
    """Short name, used in the record."""
    name: Text
    """Name, or TBD."""
    roles: tuple[Name, ...] = Field(min_length=1)
    """on_call, dba, security, incident_commander, operator or roles of your own."""
    slack_ids: tuple[SlackId, ...] = ()
    """Every Slack account of the person; without one the person cannot sign."""
    phone: Text | None = None
    """Phone number in quotes, or TBD."""
    email: Text | None = None
    """Address."""
