"""What the policy lets go, and the step that deletes it one by one, where a store may not let some of it go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import ClassVar

from actions.contract import Probe, Step
from actions.errors import PermanentError, UserError, VerificationError
from actions.ports import Ports, Progress, ProgressReport
from actions.site import Frozen
from actions.steps.phrases import counted, names

SHOWN = 10


class Old(Frozen):
    """What goes, oldest first, and why something old stays."""

    gone: tuple[str, ...] = ()
    kept: Mapping[str, str] = {}


class DeleteOld(Step):
    """What is older than the policy gone from a bucket. Each kind says what may go now, and how one is deleted."""

    noun: ClassVar[str]
    interruptible: ClassVar[bool] = True
    timeout: timedelta = timedelta(hours=1)
    old: Old
    bucket: str
    endpoint: str | None
    prefix: str

    @property
    def before(self) -> str:
        return some(self.old.gone)

    @property
    def after(self) -> str:
        return f"gone from bucket `{self.bucket}`{stay(self.old.kept)}"

    @abstractmethod
    async def due(self, ports: Ports) -> Old:
        """What would go now."""

    @abstractmethod
    async def remove(self, ports: Ports, name: str) -> None: ...

    async def probe(self, ports: Ports) -> Probe:
        return Probe.TODO if await self._left(ports) else Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:
        """One that the store does not let go holds up no other. Raises PermanentError naming those."""
        left = await self._left(ports)
        refused: dict[str, str] = {}
        for number, name in enumerate(left, start=1):
            try:
                await self.remove(ports, name)
            except (UserError, PermanentError) as error:
                refused[name] = str(error)
            progress(ProgressReport(done=number, total=len(left), unit="steps", phase="delete"))
        if refused:
            first = next(iter(refused))
            raise PermanentError(
                f"{len(refused)} of {counted(len(left), self.noun)} could not be deleted, the first of them `{first}`: "
                f"{refused[first]} What an Object Lock holds goes at the first expiry after its end."
            )

    async def verify(self, ports: Ports) -> None:
        if left := await self._left(ports):
            raise VerificationError(f"{some(left)} is still there. Look at the locks of bucket `{self.bucket}`.")

    async def undo(self, ports: Ports) -> None:
        """What the signed plan file lets go is gone; a bucket with versions gives it back while it keeps them."""

    async def _left(self, ports: Ports) -> list[str]:
        """Of what was to go: what is there and may still go. One may have been pinned or become needed meanwhile."""
        now = set((await self.due(ports)).gone)
        return [name for name in self.old.gone if name in now]


def some(items: Sequence[str]) -> str:
    """The first of them by name; the others counted."""
    if len(items) <= SHOWN:
        return names(items)
    return f"{names(items[: SHOWN - 1])} and {len(items) - SHOWN + 1} others, to `{items[-1]}`"


def stay(kept: Mapping[str, str]) -> str:
    """What stays and why, to go on a sentence with; empty when nothing does."""
    shown = "".join(f"; `{name}` stays: {why}" for name, why in list(kept.items())[:SHOWN])
    return shown + (f"; {len(kept) - SHOWN} others stay" if len(kept) > SHOWN else "")
