"""Whether an alarm still asks for a new base backup: one that was made while its request waited may have ended it."""

from __future__ import annotations

from typing import ClassVar, Literal

from actions.contract import Precondition
from actions.ports import Ports
from actions.steps.alarms import alarms, subjects
from actions.steps.base_choice import usable_bases
from actions.steps.health import health


class BaseWanted(Precondition):
    """An alarm asks for a new full base backup of the server. What nobody can tell counts as asked for."""

    spent: ClassVar[bool] = True
    kind: Literal["base_wanted"] = "base_wanted"
    server: str

    @property
    def summary(self) -> str:
        return f"An alarm asks for a new full base backup of `{self.server}`"

    async def violation(self, ports: Ports) -> str | None:
        here = [key for key in ports.site.backups if ports.site.database(key).server == self.server]
        found = await health(ports, databases=here)
        bases = found.base_of(self.server)
        if bases is None or bases.subject not in subjects(found):
            return None  # a bucket is silent: it may hide the very gap
        if any(alarm.wants_base for alarm in alarms(found) if alarm.key.endswith(f"/{bases.subject}")):
            return None
        newest = next(iter(usable_bases(bases.living)), None)
        made = "" if newest is None else f" `{newest.manifest.id}` was made meanwhile."
        return f"No alarm asks for a new base backup of `{self.server}` any more, so none is made.{made}"
