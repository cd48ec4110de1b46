"""One row of the table: the words people type, and the command they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import Field

from actions.site import Frozen
from bot.router import params

HUB = "dr"
SLASHES = (HUB, "dr-incident", "dr-backup", "dr-restore", "dr-drill", "dr-evidence")
"""The slash commands of Slack, without the slash; each but the hub is a noun of the table."""


BREAK_GLASS = "break-glass"
"""The word before a command that its requester wants to start alone."""


class CommandKind(StrEnum):
    """QUERY answers at once; PLAN asks for a plan and is its first signature; ORDER tells a run what to do, which one
    person may; INCIDENT writes the record; CUSTODY writes the chain of an item of evidence; SIGN is a further act on a
    plan; LOCAL is answered by whoever parsed it (help, the restore modal)."""

    QUERY = "query"
    PLAN = "plan"
    ORDER = "order"
    INCIDENT = "incident"
    CUSTODY = "custody"
    SIGN = "sign"
    LOCAL = "local"


class Command(Frozen):
    """One request, parsed. `typed` is the target's name as the requester typed it."""

    name: str
    params: Mapping[str, Any] = Field(default_factory=dict)
    reason: str = ""
    typed: str = ""
    break_glass: bool = False


@dataclass(frozen=True)
class Entry:
    """One row: the words people type and the command they mean."""

    words: tuple[str, ...]
    name: str
    kind: CommandKind
    summary: str
    example: str  # without the slash: "dr-backup run superprismora"
    params: type[Frozen] = params.Nothing
    positional: tuple[str, ...] = ()
    rest: str = ""  # the parameter that takes all further words as a sentence
    aliases: Mapping[str, str] = field(default_factory=dict)  # option -> parameter
    usage: str = ""
    flags: tuple[str, ...] = ()  # options that need no value

    @property
    def noun(self) -> str:
        return self.words[0]

    @property
    def options(self) -> tuple[str, ...]:
        """Every name that may stand after `--`."""
        own = [name.replace("_", "-") for name in self.params.model_fields if name != self.rest]
        signing = {CommandKind.PLAN: ["reason", "target"], CommandKind.ORDER: ["reason"]}.get(self.kind, [])
        return tuple(dict.fromkeys([*own, *self.aliases, *signing]))
