"""Steps that put a pin on something that is kept, or take it off."""

from __future__ import annotations

import shlex
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import StringConstraints

from actions.buckets import Hold
from actions.contract import Probe, Step
from actions.errors import VerificationError
from actions.ports import Ports, Progress
from actions.steps.holds import pinned_words, unpinned_words

Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
"""Of a pin."""


class Pinning(Step):
    """A pin: nothing may delete what has it, and what that needs. An empty reason takes it off."""

    looked_at_with: ClassVar[str]
    undo_on_failure: bool = True
    reason: str
    reason_before: str

    @property
    @abstractmethod
    def thing(self) -> str:
        """What is pinned, in the middle of a sentence."""

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """Its noun on the command line, then its names."""

    @abstractmethod
    async def pinned(self, ports: Ports) -> str | None:
        """The reason of its pin, empty without one; None when there is no such thing."""

    @abstractmethod
    async def pin(self, ports: Ports, reason: str) -> None: ...

    async def holds(self, ports: Ports) -> Sequence[Hold]:  # noqa: ARG002 - the signature of those that know
        """How the buckets themselves keep it; nothing where nobody knows."""
        return ()

    async def lacking(self, ports: Ports) -> Sequence[str]:  # noqa: ARG002 - the same
        """Buckets that have not the newest word about it."""
        return ()

    @property
    def summary(self) -> str:
        return f"Pin {self.thing}: {self.reason}" if self.reason else f"Take the pin off {self.thing}"

    @property
    def before(self) -> str:
        return f"pinned: {self.reason_before}" if self.reason_before else "not pinned"

    @property
    def after(self) -> str:
        return f"pinned: {self.reason}" if self.reason else "goes when the policy lets it go"

    def by_hand(self) -> tuple[str, ...]:
        return (self._by_hand(self.reason),)

    async def probe(self, ports: Ports) -> Probe:
        found = await self.pinned(ports)
        if found is None:
            return Probe.UNKNOWN
        if found != self.reason:
            return Probe.TODO
        # It is asked for anew where the store has lost a hold, or was never asked.
        holds = await self.holds(ports) if self.reason else ()
        return Probe.DONE if all(hold.whole or hold.problem for hold in holds) else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - one small object
        await self.pin(ports, self.reason)

    async def verify(self, ports: Ports) -> None:
        # Not by `probe`: a pin is one whatever else there is to be done about it.
        if await self.pinned(ports) != self.reason:
            raise VerificationError(
                f"{self.thing[0].upper()}{self.thing[1:]} is not {self.after}. Look at it with `{self.looked_at_with}`."
            )

    async def outcome(self, ports: Ports) -> str:
        left = await self.lacking(ports)
        return pinned_words(await self.holds(ports), left) if self.reason else unpinned_words(left)

    async def undo(self, ports: Ports) -> None:
        """Also where the pin was never written: the store was asked to hold it first. One that others have set or taken
        off since is theirs."""
        if await self.pinned(ports) in (self.reason, self.reason_before):
            await self.pin(ports, self.reason_before)

    def undo_by_hand(self) -> tuple[str, ...]:
        return (self._by_hand(self.reason_before),)

    def _by_hand(self, reason: str) -> str:
        noun, *names = self.words
        return shlex.join(["drbot", noun, *(["pin", *names, reason] if reason else ["unpin", *names])])
