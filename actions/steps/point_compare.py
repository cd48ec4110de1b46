"""A recovery point as people sign it, and the comparison that ends its return."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

from actions.contract import Precondition, Probe, Step, canonical
from actions.errors import DrError, TemporaryError, UserError, VerificationError
from actions.points import RecoveryPoint
from actions.ports import Ports, Progress, ProgressReport
from actions.runner import OUTCOME_LIMIT
from actions.steps.gitops import Controller
from actions.steps.phrases import counted, names
from actions.steps.point_cluster import image_changes, image_lines
from actions.steps.point_commits import applied, controllers, manifest_lines
from actions.steps.point_keys import key_lines
from actions.steps.point_secrets import secret_lines

APPLIED = timedelta(minutes=5)
"""How long a controller may take to look at its repository: Argo CD does so every three minutes."""

PAUSE = timedelta(seconds=5)

LOOK = OUTCOME_LIMIT - timedelta(seconds=5)
"""How long the last look at the site may take: what it finds must be said before nobody waits for it."""


async def recorded(ports: Ports, wanted: str) -> RecoveryPoint:
    """Raises UserError for one that is not there, and for one that must not be believed."""
    entry = await ports.points.find(wanted)
    if entry is None:
        raise UserError(f"There is no recovery point `{wanted}`. Look with `/dr point list`.")
    if entry.problem is not None:
        raise UserError(f"{entry.problem} Use another one.")
    return entry.point


def fingerprint(point: RecoveryPoint) -> str:
    """SHA-256, hex, of what it says."""
    return hashlib.sha256(canonical(point.model_dump(mode="json")).encode()).hexdigest()


def unread(point: RecoveryPoint, now: RecoveryPoint) -> bool:
    """Whether nothing is known of what runs, so that no comparison says anything."""
    return bool(point.workloads) and not now.workloads_read


class PointIs(Precondition):
    """The recovery point says what it said, and its signature still checks."""

    kind: Literal["point_is"] = "point_is"
    point: str
    sha256: str

    @property
    def summary(self) -> str:
        return f"Recovery point `{self.point}` still verifies, SHA-256 {self.sha256[:12]}"

    async def violation(self, ports: Ports) -> str | None:
        try:
            found = await recorded(ports, self.point)
        except UserError as error:
            return str(error)
        return None if fingerprint(found) == self.sha256 else f"Recovery point `{self.point}` says something else now."


class ComparePoint(Step):
    """The site beside the point, once everything is back; and what is left for people, with the commands."""

    kind: Literal["compare_point"] = "compare_point"
    point: str
    manual: tuple[str, ...]  # a comment and its command in turn
    awaited: tuple[Controller, ...] = ()  # those that apply the point's commit by themselves
    returned: Mapping[str, str] = {}  # secrets that come with it, each with its version before

    @property
    def summary(self) -> str:
        left = counted(sum(line.startswith("# ") for line in self.manual), "part")
        return f"Compare the site with recovery point `{self.point}`; {left} left to people, see the commands"

    @property
    def before(self) -> str:
        return "parts brought back, not yet looked at together"

    @property
    def after(self) -> str:
        return "images as in the point; whatever else differs is named"

    def by_hand(self) -> tuple[str, ...]:
        return (f"drbot point list {self.point}", *self.manual)

    async def probe(self, ports: Ports) -> Probe:  # noqa: ARG002 - a comparison leaves nothing behind
        return Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:
        point = await recorded(ports, self.point)
        deadline = ports.clock.now() + APPLIED
        while self.awaited and ports.clock.now() < deadline:
            late = [each for each in self.awaited if not await applied(ports, point, each)]
            progress(ProgressReport(total=len(self.awaited), done=len(self.awaited) - len(late), unit="steps"))
            if not late:
                break
            await ports.clock.sleep(PAUSE)
        now = await ports.points.gather(self.point)
        if unread(point, now):
            raise TemporaryError(f"What runs now cannot be read: {' '.join(now.missing)}")
        changed = image_changes(point, now)
        if changed:
            refs = names(change.ref.name for change in changed)
            raise VerificationError(f"{refs} does not run the images of `{self.point}`. Find out who sets them.")

    async def verify(self, ports: Ports) -> None:
        """`apply` is the comparison."""

    async def outcome(self, ports: Ports) -> str:
        """Never without what is left to people, whoever does not answer."""
        try:
            async with asyncio.timeout(LOOK.total_seconds()):
                return await self._looked(ports)
        except (DrError, TimeoutError) as error:
            why = str(error) or f"it takes longer than {LOOK.total_seconds():.0f} s"
            signed = _to_do(dict(zip(self.manual[::2], self.manual[1::2], strict=True)))
            return f"The site could not be looked at as a whole: {why}. {signed or 'Nothing was left to people then.'}"

    async def _looked(self, ports: Ports) -> str:
        point, now = await recorded(ports, self.point), await ports.points.gather(self.point)
        left = dict(zip(self.manual[::2], self.manual[1::2], strict=True))
        lines = [
            *await key_lines(ports, point),
            *await secret_lines(ports, point, now, self.returned),
            *await manifest_lines(ports, point, now, reasons=dict.fromkeys(controllers(point), "")),
            *image_lines(point, now),
        ]
        left |= dict(line.lines for line in lines)
        return _to_do(left) or "Images, commits, sealing keys and Secrets that could be looked at are as in the point."


def _to_do(left: Mapping[str, str]) -> str:
    """`left`: a comment -> its command."""
    return f"Left to people: {' '.join(f'{why[2:]} `{command}`' for why, command in left.items())}" if left else ""
