"""The four accounts of the demo's Slack."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Account:
    """A Slack account; `person` is the short name in the plan's roster, empty for somebody who is not on it."""

    slack_id: str
    login: str
    name: str
    email: str
    person: str = ""
    guest: bool = False


OLIVIA = Account(
    slack_id="U0OLIVIA", login="olivia", name="Olivia (on-call)", email="olivia@superprismora.example", person="olivia"
)
DANIEL = Account(
    slack_id="U0DANIEL", login="daniel", name="Daniel (DBA)", email="daniel@superprismora.example", person="daniel"
)
SELMA = Account(
    slack_id="U0SELMA", login="selma", name="Selma (security)", email="selma@superprismora.example", person="selma"
)
GUS = Account(slack_id="U0GUS", login="gus", name="Gus (guest)", email="gus@partner.example", guest=True)

ACCOUNTS = (OLIVIA, DANIEL, SELMA, GUS)
