"""The step that records a recovery point."""

from __future__ import annotations

from typing import Literal

from actions.contract import Probe, Step
from actions.errors import VerificationError
from actions.ports import Ports, Progress


class RecordPoint(Step):
    """A signed document that names what belongs together."""

    kind: Literal["record_point"] = "record_point"
    point: str
    bucket: str
    requested_by: str

    @property
    def summary(self) -> str:
        return f"Record recovery point `{self.point}` in bucket `{self.bucket}`, and the images that must not expire"

    @property
    def before(self) -> str:
        return f"no recovery point `{self.point}`"

    @property
    def after(self) -> str:
        return f"recovery point `{self.point}`, signed; nothing else is changed"

    def by_hand(self) -> tuple[str, ...]:
        return (
            "# Write down, with the time: the newest backup of each database, the newest copy of the files, and",
            "kubectl get pods -A -o jsonpath='{range .items[*].status.containerStatuses[*]}{.imageID}{\"\\n\"}{end}'",
            "git ls-remote origin HEAD",
        )

    async def probe(self, ports: Ports) -> Probe:
        return Probe.DONE if await self._problem(ports) == "" else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - it takes a moment
        await ports.points.record(self.point, requested_by=self.requested_by)

    async def verify(self, ports: Ports) -> None:
        problem = await self._problem(ports)
        if problem != "":
            raise VerificationError(problem or f"There is no recovery point `{self.point}`. Try again.")

    async def undo(self, ports: Ports) -> None:
        """A recorded point is true, and is kept."""

    async def _problem(self, ports: Ports) -> str | None:
        """Empty when it is there and good, None when there is none, else what is wrong with it."""
        entry = await ports.points.find(self.point)
        return None if entry is None else entry.problem or ""
