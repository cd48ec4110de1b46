"""Steps that delete recovery points and escrows which the policy lets go, and that keep a recovery point."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import ClassVar, Literal

from actions.contract import Precondition, Probe, Step
from actions.errors import VerificationError
from actions.ports import Ports, Progress
from actions.steps import byhand
from actions.steps.escrow_expiry import OldEscrows, escrows_due
from actions.steps.phrases import counted, names
from actions.steps.point_compare import fingerprint
from actions.steps.point_expiry import OldPoints, points_due
from actions.steps.removal import removed

SHOWN = 10


class DeletePoints(Step):
    """Recovery points older than the policy gone; the newest, the pinned and those of pinned dumps stay."""

    interruptible: ClassVar[bool] = True
    kind: Literal["delete_points"] = "delete_points"
    timeout: timedelta = timedelta(hours=1)
    old: OldPoints
    bucket: str
    endpoint: str | None
    prefix: str

    @property
    def summary(self) -> str:
        return f"Delete {counted(len(self.old.gone), 'old recovery point')} from bucket `{self.bucket}`"

    @property
    def before(self) -> str:
        return _some(self.old.gone)

    @property
    def after(self) -> str:
        return f"gone from bucket `{self.bucket}`{_stay(self.old.kept)}"

    def by_hand(self) -> tuple[str, ...]:
        folder = f"s3://{self.bucket}/{self.prefix}recovery-points/"
        return tuple(byhand.aws(self.endpoint, "s3", "rm", f"{folder}{name}.json") for name in self.old.gone)

    async def probe(self, ports: Ports) -> Probe:
        return Probe.TODO if await self._left(ports) else Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await removed(await self._left(ports), ports.points.remove, "recovery point", progress)

    async def verify(self, ports: Ports) -> None:
        if left := await self._left(ports):
            raise VerificationError(f"{_some(left)} is still in bucket `{self.bucket}`. Look at its locks.")

    async def undo(self, ports: Ports) -> None:
        """What the signed plan file lets go is gone; a bucket with versions gives it back while it keeps them."""

    async def _left(self, ports: Ports) -> list[str]:
        """Of what was to go: what is there and may still go. One may have been pinned meanwhile."""
        if ports.site.points is None:
            return []
        now = set((await points_due(ports, ports.site.points)).gone)
        return [name for name in self.old.gone if name in now]


class DeleteEscrows(Step):
    """Escrows of a cluster that are older than the policy and that nothing needs gone."""

    interruptible: ClassVar[bool] = True
    kind: Literal["delete_escrows"] = "delete_escrows"
    timeout: timedelta = timedelta(hours=1)
    old: OldEscrows
    bucket: str
    endpoint: str | None
    prefix: str

    @property
    def summary(self) -> str:
        return f"Delete {counted(len(self.old.gone), 'old escrow')} of cluster `{self.old.cluster}`"

    @property
    def before(self) -> str:
        return _some(self.old.gone)

    @property
    def after(self) -> str:
        return f"gone from bucket `{self.bucket}`{_stay(self.old.kept)}"

    def by_hand(self) -> tuple[str, ...]:
        folder = f"s3://{self.bucket}/{self.prefix}escrow/{self.old.cluster}/"
        return tuple(byhand.aws(self.endpoint, "s3", "rm", "--recursive", f"{folder}{name}/") for name in self.old.gone)

    async def probe(self, ports: Ports) -> Probe:
        return Probe.TODO if await self._left(ports) else Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:
        async def remove(name: str) -> None:
            await ports.escrow.remove(self.old.cluster, name)

        await removed(await self._left(ports), remove, "escrow", progress)

    async def verify(self, ports: Ports) -> None:
        if left := await self._left(ports):
            raise VerificationError(f"{_some(left)} is still in bucket `{self.bucket}`. Look at its locks.")

    async def undo(self, ports: Ports) -> None:
        """What the signed plan file lets go is gone; a bucket with versions gives it back while it keeps them."""

    async def _left(self, ports: Ports) -> list[str]:
        """Of what was to go: what is there and may still go. A point that needs it may have been recorded meanwhile."""
        if ports.site.escrow is None:
            return []
        now = set((await escrows_due(ports, ports.site.escrow, self.old.cluster)).gone)
        return [name for name in self.old.gone if name in now]


class SetPointPin(Step):
    """A pin on a recovery point: nothing deletes it, its escrow and its images. An empty reason takes it off."""

    kind: Literal["set_point_pin"] = "set_point_pin"
    undo_on_failure: bool = True
    point: str
    reason: str
    reason_before: str

    @property
    def summary(self) -> str:
        return (
            f"Pin recovery point `{self.point}`: {self.reason}"
            if self.reason
            else f"Take the pin off recovery point `{self.point}`"
        )

    @property
    def before(self) -> str:
        return f"pinned: {self.reason_before}" if self.reason_before else "not pinned"

    @property
    def after(self) -> str:
        return f"pinned: {self.reason}" if self.reason else "goes when the policy lets it go"

    def by_hand(self) -> tuple[str, ...]:
        return (_pinned_by_hand(self.point, self.reason),)

    async def probe(self, ports: Ports) -> Probe:
        found = await ports.points.find(self.point)
        if found is None:
            return Probe.UNKNOWN
        return Probe.DONE if found.pinned == self.reason else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - one small object
        await ports.points.pin(self.point, reason=self.reason)

    async def verify(self, ports: Ports) -> None:
        if await self.probe(ports) is not Probe.DONE:
            raise VerificationError(
                f"Recovery point `{self.point}` is not {self.after}. Look at it with `/dr point list`."
            )

    async def undo(self, ports: Ports) -> None:
        found = await ports.points.find(self.point)
        if found is not None and found.pinned == self.reason:
            await ports.points.pin(self.point, reason=self.reason_before)

    def undo_by_hand(self) -> tuple[str, ...]:
        return (_pinned_by_hand(self.point, self.reason_before),)


class PointIsThere(Precondition):
    """The point says, byte for byte, what it said; whether it can be used does not matter."""

    spent: ClassVar[bool] = True
    kind: Literal["point_is_there"] = "point_is_there"
    point: str
    sha256: str

    @property
    def summary(self) -> str:
        return f"Recovery point `{self.point}` has SHA-256 {self.sha256[:12]}"

    async def violation(self, ports: Ports) -> str | None:
        found = await ports.points.find(self.point)
        if found is None:
            return f"Recovery point `{self.point}` is no longer there."
        if fingerprint(found.point) != self.sha256:
            return f"Recovery point `{self.point}` was changed since it was signed for."
        return None


def _pinned_by_hand(point: str, reason: str) -> str:
    return shlex.join(["drbot", "point", "pin", point, reason] if reason else ["drbot", "point", "unpin", point])


def _some(items: Sequence[str]) -> str:
    if len(items) <= SHOWN:
        return names(items)
    return f"{names(items[: SHOWN - 1])} and {len(items) - SHOWN + 1} others, to `{items[-1]}`"


def _stay(kept: Mapping[str, str]) -> str:
    shown = "".join(f"; `{name}` stays: {why}" for name, why in list(kept.items())[:SHOWN])
    return shown + (f"; {len(kept) - SHOWN} others stay" if len(kept) > SHOWN else "")
