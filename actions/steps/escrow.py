"""The step that puts a cluster's sealing keys into escrow."""

from __future__ import annotations

import shlex
from typing import Literal

from actions.contract import Probe, Step
from actions.errors import VerificationError
from actions.ports import Ports, Progress
from actions.steps import byhand

LABEL = "sealedsecrets.bitnami.com/sealed-secrets-key"


class EscrowKeys(Step):
    """All sealing keys of a cluster, encrypted to the plan's recipients, in a bucket outside the cluster."""

    kind: Literal["escrow_keys"] = "escrow_keys"
    cluster: str
    namespace: str
    escrow: str
    bucket: str
    endpoint: str | None
    prefix: str
    recipients: tuple[str, ...]
    requested_by: str

    @property
    def summary(self) -> str:
        return f"Put the sealing keys of cluster `{self.cluster}` into escrow `{self.escrow}` in `{self.bucket}`"

    @property
    def before(self) -> str:
        return f"no escrow `{self.escrow}`"

    @property
    def after(self) -> str:
        return f"the keys encrypted to {len(self.recipients)} recipient(s), signed; the cluster as it was"

    def by_hand(self) -> tuple[str, ...]:
        recipients = " ".join(f"-r {shlex.quote(item)}" for item in self.recipients)
        read = byhand.kubectl(self.cluster, self.namespace, "get", "secret", "-l", LABEL, "-o", "json")
        target = f"s3://{self.bucket}/{self.prefix}by-hand/{self.escrow}.age"
        return (
            f"{read} | age {recipients} > {self.escrow}.age",
            byhand.aws(self.endpoint, "s3", "cp", f"{self.escrow}.age", target),
        )

    async def probe(self, ports: Ports) -> Probe:
        return Probe.DONE if await self._problem(ports) == "" else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - it takes a moment
        await ports.escrow.make(self.escrow, self.cluster, requested_by=self.requested_by)

    async def verify(self, ports: Ports) -> None:
        problem = await self._problem(ports)
        if problem != "":
            raise VerificationError(problem or f"There is no escrow `{self.escrow}` in `{self.bucket}`. Try again.")

    async def undo(self, ports: Ports) -> None:
        """The cluster was not changed; the escrow is kept."""

    async def _problem(self, ports: Ports) -> str | None:
        """Empty when it is there and good, None when there is none, else what is wrong with it."""
        for entry in await ports.escrow.entries(self.cluster):
            if entry.manifest.id == self.escrow:
                return entry.problem or ""
        return None
