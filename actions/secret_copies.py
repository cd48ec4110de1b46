"""Secrets of the services that neither Git nor a vault brings back, and their sealed copies in escrow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from actions.escrow import Escrowed
from actions.site import Frozen

Json = dict[str, Any]


class HeldSecret(Frozen):
    """What may be said aloud of a Secret. `content` is a fingerprint of its type and values under a key of the bot."""

    name: str  # "Secret main/shop/database"
    version: str  # the server's own: `resourceVersion` of `uid`
    content: str


class FoundSecret(HeldSecret):
    """As a cluster has it now."""

    by: str = ""  # what writes it anew when it is lost; empty: nobody


class SecretsNow(Frozen):
    """The Secrets of people in the namespaces of the services of a cluster."""

    secrets: tuple[FoundSecret, ...] = ()

    def find(self, name: str) -> FoundSecret | None:
        return next((each for each in self.secrets if each.name == name), None)


class SecretCopyManifest(Escrowed):
    """The signed description of a sealed copy; written last."""

    secrets: tuple[HeldSecret, ...]


class SecretCopyEntry(Frozen):
    """One sealed copy as the bucket shows it."""

    manifest: SecretCopyManifest
    problem: str | None = None  # why it must not be relied on
    trusted: bool = True  # False: its manifest is not signed by us, so nothing is known of it


class Returnable(Frozen):
    """What a sealed copy can give back from here: Secret -> fingerprint of what it holds, or why it cannot."""

    contents: Mapping[str, str] = {}
    problems: Mapping[str, str] = {}


class SecretObjects(Protocol):
    """Secrets in clusters, values included: only the engine that encrypts may ask."""

    async def read(self, cluster: str, namespaces: Collection[str]) -> Sequence[Json]:
        """Every Secret of these namespaces, as the server has it. They never reach a log, a message or a disk."""

    async def write(self, cluster: str, item: Json, *, over: str, dry_run: bool = False) -> None:
        """Create it, or, with the version that it must have, replace its values and nothing else of it. Raises
        VerificationError when another is there than `over` says, UserError without the right to it."""

    async def may_write(self, cluster: str, namespace: str) -> None:
        """Raise UserError where the bot has no right to `write`. Changes nothing."""


class SecretCopies(Protocol):
    """Sealed copies of the Secrets that only they bring back."""

    async def current(self, cluster: str) -> SecretsNow:
        """What is there now. Raises UserError where the bot has no right to look."""

    async def entries(self, cluster: str) -> Sequence[SecretCopyEntry]:
        """Newest first. One that fails its check is listed with `problem`, never hidden."""

    async def find(self, cluster: str, copy_id: str) -> SecretCopyEntry | None:
        """One of `entries`; None when there is none."""

    async def seal(
        self, copy_id: str, cluster: str, secrets: Collection[str], *, requested_by: str = ""
    ) -> SecretCopyManifest:
        """Encrypt these to the recipients of the escrow, store them, read them back, then sign. A rerun returns what is
        there. Raises UserError when one is not there."""

    async def whole(self, cluster: str, copy_id: str) -> bool:
        """Whether it is there, byte for byte as it was signed. Needs no identity."""

    async def check(self, cluster: str, copy_id: str, over: Mapping[str, str]) -> Returnable:
        """What `give_back` could do from here, tried without a change: the copy is as it was signed, opens and holds
        these; the cluster would take each (`over`: Secret -> version there, empty where there is none)."""

    async def give_back(self, cluster: str, copy_id: str, secret: str, *, over: str) -> None:
        """Create it, or replace the values of exactly this version of it."""

    async def may_give_back(self, cluster: str) -> None:
        """Raise UserError where the cluster does not let the bot do so. Changes nothing."""

    async def remove(self, cluster: str, copy_id: str) -> None:
        """Delete the values, then the manifest. One that is gone is no error."""
