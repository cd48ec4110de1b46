"""Steps that delete recovery points and escrows which the policy lets go, and that keep a recovery point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from actions.backup.secret_copies import FOLDER
from actions.buckets import Hold
from actions.contract import Precondition
from actions.ports import Ports
from actions.steps import byhand
from actions.steps.escrow_expiry import OldEscrows, escrows_due
from actions.steps.expiry import DeleteOld
from actions.steps.phrases import counted
from actions.steps.pins import Pinning
from actions.steps.point_compare import fingerprint
from actions.steps.point_expiry import OldPoints, points_due
from actions.steps.secret_copy_expiry import OldCopies, copies_due


class DeletePoints(DeleteOld):
    """Recovery points older than the policy gone, with what is sealed of each; the newest, the pinned and those of
    pinned dumps stay."""

    noun: ClassVar[str] = "recovery point"
    kind: Literal["delete_points"] = "delete_points"
    old: OldPoints

    @property
    def summary(self) -> str:
        return f"Delete {counted(len(self.old.gone), 'old recovery point')} from bucket `{self.bucket}`"

    def by_hand(self) -> tuple[str, ...]:
        folder = f"s3://{self.bucket}/{self.prefix}recovery-points/"
        return (
            *(byhand.aws(self.endpoint, "s3", "rm", f"{folder}{name}.json") for name in self.old.gone),
            "# what is sealed of them goes with `drbot secrets expire`, once it is older than `escrow.retention`",
        )

    async def due(self, ports: Ports) -> OldPoints:
        policy = ports.site.points
        return OldPoints() if policy is None else await points_due(ports, policy)

    async def remove(self, ports: Ports, name: str) -> None:
        await ports.points.remove(name)


class DeleteEscrows(DeleteOld):
    """Escrows of a cluster that are older than the policy and that nothing needs gone."""

    noun: ClassVar[str] = "escrow"
    kind: Literal["delete_escrows"] = "delete_escrows"
    old: OldEscrows

    @property
    def summary(self) -> str:
        return f"Delete {counted(len(self.old.gone), 'old escrow')} of cluster `{self.old.cluster}`"

    def by_hand(self) -> tuple[str, ...]:
        folder = f"s3://{self.bucket}/{self.prefix}escrow/{self.old.cluster}/"
        return tuple(byhand.aws(self.endpoint, "s3", "rm", "--recursive", f"{folder}{name}/") for name in self.old.gone)

    async def due(self, ports: Ports) -> OldEscrows:
        policy, cluster = ports.site.escrow, self.old.cluster
        return OldEscrows(cluster=cluster) if policy is None else await escrows_due(ports, policy, cluster)

    async def remove(self, ports: Ports, name: str) -> None:
        await ports.escrow.remove(self.old.cluster, name)


class DeleteSecretCopies(DeleteOld):
    """Sealed copies of Secrets of a cluster that are older than the policy and belong to no recovery point gone."""

    noun: ClassVar[str] = "sealed copy"
    kind: Literal["delete_secret_copies"] = "delete_secret_copies"
    old: OldCopies

    @property
    def summary(self) -> str:
        return f"Delete {len(self.old.gone)} old sealed copies of Secrets of cluster `{self.old.cluster}`"

    def by_hand(self) -> tuple[str, ...]:
        folder = f"s3://{self.bucket}/{self.prefix}{FOLDER}/{self.old.cluster}/"
        return tuple(byhand.aws(self.endpoint, "s3", "rm", "--recursive", f"{folder}{name}/") for name in self.old.gone)

    async def due(self, ports: Ports) -> OldCopies:
        policy, cluster = ports.site.escrow, self.old.cluster
        return OldCopies(cluster=cluster) if policy is None else await copies_due(ports, policy, cluster)

    async def remove(self, ports: Ports, name: str) -> None:
        await ports.secret_copies.remove(self.old.cluster, name)


class SetPointPin(Pinning):
    """On a recovery point: nothing deletes it, its escrow, its sealed Secrets and its images."""

    looked_at_with: ClassVar[str] = "/dr point list"
    kind: Literal["set_point_pin"] = "set_point_pin"
    point: str

    @property
    def thing(self) -> str:
        return f"recovery point `{self.point}`"

    @property
    def words(self) -> tuple[str, ...]:
        return ("point", self.point)

    async def pinned(self, ports: Ports) -> str | None:
        found = await ports.points.find(self.point)
        return None if found is None else found.pinned

    async def pin(self, ports: Ports, reason: str) -> None:
        await ports.points.pin(self.point, reason=reason)

    async def holds(self, ports: Ports) -> Sequence[Hold]:
        return await ports.points.holds(self.point)


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
