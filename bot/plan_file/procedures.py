"""What people follow: objectives, scenarios, runbooks, drills and contacts."""

from datetime import date
from enum import StrEnum

from pydantic import Field

from bot.plan_file.values import ActionName, Duration, Name, Part, Schedule, Text


class PlanStatus(StrEnum):
    """How far the plan document is agreed on."""

    DRAFT = "draft"
    ACTIVE = "active"
    RETIRED = "retired"


class PlanDocument(Part):
    """The head and foot of the written plan this file comes from."""

    version: Text
    """Version of the written plan."""
    status: PlanStatus
    """draft, active or retired."""
    written: date
    """Day the plan was written."""
    last_updated: date
    """Day of its last change."""
    next_review: date
    """Day by which people look at it again; `drbot plan check` warns once it has passed."""


class Objectives(Part):
    """What is promised: loss at most `rpo`, downtime at most `rto`."""

    rpo: Duration
    """Recovery point objective: the most data, in time, that may be lost."""
    rpo_by: Text
    """How the plan keeps the RPO."""
    rto: Duration
    """Recovery time objective: the longest downtime, where no scenario says otherwise."""
    rto_by: Text
    """How the plan keeps the RTO."""
    integrity: tuple[Text, ...] = ()
    """The rules on data integrity."""


class PlanStep(Part):
    """One step of a scenario, runbook or drill."""

    text: Text
    """What is done, in one sentence."""
    action: ActionName | None = None
    """The action (noun.verb) that does it; empty when people do."""
    by_hand: tuple[Text, ...] = ()
    """The commands that do it by hand, for the day the bot is down."""


class Scenario(Part):
    """A kind of disaster, with its own RTO."""

    name: Name
    """Name used in `/dr-incident open`."""
    title: Text
    """Name shown to people."""
    impact: Text
    """What is broken."""
    rto: Duration
    """Recovery time objective of this scenario."""
    steps: tuple[PlanStep, ...] = Field(min_length=1)
    """The recovery steps, in order."""


class Runbook(Part):
    """A procedure of the plan, or a link to one kept elsewhere."""

    name: Name
    """Name of the runbook."""
    title: Text
    """Name shown to people."""
    section: Text | None = None
    """Section of the written plan."""
    scenarios: tuple[Name, ...] = ()
    """Scenarios it belongs to."""
    link: Text | None = None
    """Where the whole text is kept: a path or an address."""
    steps: tuple[PlanStep, ...] = ()
    """The steps, in order; empty when only linked."""


class Drill(Part):
    """A rehearsal that repeats."""

    name: Name
    """Name of the drill."""
    title: Text
    """Name shown to people."""
    frequency: Text
    """How often, in words."""
    schedule: Schedule
    """When the next ones start, in UTC."""
    last: date | None = None
    """Day of the last one; empty when there was none."""
    next: date | None = None
    """Day of the first one by the written plan; the schedule goes on from there."""
    channel: Text | None = None
    """Channel that is reminded; empty: `channels.on_call`."""
    action: ActionName | None = None
    """The action that the bot runs by itself when the drill is due, such as backup.prove; empty when people do it."""
    steps: tuple[PlanStep, ...] = ()
    """What is done, in order."""


class Contact(Part):
    """A line of the contact list. `TBD` is allowed and warned about."""

    role: Text
    """What the contact is called in the plan."""
    name: Text
    """Name, or TBD."""
    phone: Text
    """Phone number in quotes, or TBD."""
    email: Text
    """Address of a person or a team."""
    person: Name | None = None
    """The same person's `id` in the roster."""
