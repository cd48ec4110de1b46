"""Pins of recovery points: why one is kept whatever the policy says, signed, in a folder of its own for each point.

<prefix>recovery-point-pins/<id>/pin-<moment>.json   the newest counts; one with an empty reason takes the pin off
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AwareDatetime

from actions.backup.pins import pin_name
from actions.backup.signed_document import SignedDocument, opened
from actions.errors import UserError, VerificationError
from actions.ports import ObjectStore
from actions.site import Frozen, PointsPolicy

KIND = "recovery-point-pin"


class PointPin(Frozen):
    """Why nothing may delete it; an empty reason takes an earlier pin off."""

    point: str
    reason: str
    at: AwareDatetime


class PointPins:
    """Of all recovery points."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def all(self, policy: PointsPolicy) -> Mapping[str, Sequence[str]]:
        """The names of the documents of every point that has some, oldest first."""
        found: dict[str, list[str]] = defaultdict(list)
        for facts in await self._objects.list(policy.bucket, _folder(policy)):
            point, _, name = facts.key.removeprefix(_folder(policy)).partition("/")
            found[point].append(name)
        return {point: sorted(names) for point, names in found.items()}

    async def of(self, policy: PointsPolicy, point: str) -> str:
        """Why this point is pinned; empty when it is not."""
        return await self.reason(policy, point, await self._names(policy, point))

    async def _names(self, policy: PointsPolicy, point: str) -> list[str]:
        folder = f"{_folder(policy)}{point}/"
        return sorted(facts.key.removeprefix(folder) for facts in await self._objects.list(policy.bucket, folder))

    async def reason(self, policy: PointsPolicy, point: str, names: Sequence[str]) -> str:
        """Of the pin in force; empty without one. `names` are those of its documents, oldest first."""
        for name in reversed(names):
            body = await self._objects.get(policy.bucket, f"{_folder(policy)}{point}/{name}")
            try:
                found = opened(body, KIND, PointPin, policy.trusted_signers, what=f"`{name}`")
            except VerificationError:
                continue
            # Under its own name alone: an old document that is put there again takes no newer one off.
            if (pin_name(found.at), found.point) == (name, point):
                return found.reason
        return ""

    async def set(self, policy: PointsPolicy, point: str, reason: str, at: datetime, signer: Ed25519PrivateKey) -> None:
        """Put it on; an empty reason takes it off."""
        body = SignedDocument.sign(KIND, PointPin(point=point, reason=reason, at=at), signer).bytes()
        await self._objects.put(policy.bucket, f"{_folder(policy)}{point}/{pin_name(at)}", body)

    async def forget(self, policy: PointsPolicy, point: str) -> None:
        """Delete the documents of a point that is not pinned, the one that took the last pin off at the end. Raises
        UserError while it is pinned."""
        names = await self._names(policy, point)
        if why := await self.reason(policy, point, names):
            raise UserError(
                f"Recovery point `{point}` is pinned: {why}. Take the pin off first, with `/dr point unpin {point}`."
            )
        for name in names:
            await self._objects.delete(policy.bucket, f"{_folder(policy)}{point}/{name}")


def _folder(policy: PointsPolicy) -> str:
    return f"{policy.prefix}recovery-point-pins/"
