"""The step that gives sealing keys back to a cluster, out of their escrow."""

from __future__ import annotations

from typing import Literal

from actions.contract import Precondition, Probe, Step
from actions.errors import VerificationError
from actions.escrow import EscrowManifest, SealingKey
from actions.ports import Ports, Progress
from actions.steps import byhand
from actions.steps.phrases import counted, names


class ReturnKeys(Step):
    """Keys that the cluster has lost are there again; what it has now is neither changed nor deleted."""

    kind: Literal["return_keys"] = "return_keys"
    cluster: str
    namespace: str
    escrow: str
    bucket: str
    endpoint: str | None
    key: str  # of the encrypted object
    keys: tuple[str, ...]  # names of their Secrets
    fingerprints: tuple[str, ...]  # SHA-256 of their certificates

    @classmethod
    def of(cls, ports: Ports, cluster: str, manifest: EscrowManifest, lacking: tuple[SealingKey, ...]) -> ReturnKeys:
        known = ports.site.buckets.get(manifest.bucket)
        return cls(
            cluster=cluster,
            namespace=ports.site.clusters[cluster].sealed_secrets,
            escrow=manifest.id,
            bucket=manifest.bucket,
            endpoint=None if known is None else known.endpoint,
            key=manifest.key,
            keys=tuple(key.name for key in lacking),
            fingerprints=tuple(key.fingerprint for key in lacking),
        )

    @property
    def summary(self) -> str:
        return f"Give {names(self.keys)} back to cluster `{self.cluster}` out of escrow `{self.escrow}`"

    @property
    def before(self) -> str:
        return f"{counted(len(self.keys), 'sealing key')} of the point not in the cluster"

    @property
    def after(self) -> str:
        return "all there, beside those that the cluster has now"

    def by_hand(self) -> tuple[str, ...]:
        fetch = byhand.aws(self.endpoint, "s3", "cp", f"s3://{self.bucket}/{self.key}", "keys.age")
        create = byhand.kubectl(self.cluster, self.namespace, "create", "-f", "-")
        # Those that are there already are refused by name, and stay as they are.
        return (fetch, f'age -d -i "$AGE_IDENTITY_FILE" keys.age | {create}')

    async def probe(self, ports: Ports) -> Probe:
        return Probe.TODO if await self._lacking(ports) else Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - a moment
        await ports.escrow.give_back(self.cluster, self.escrow, self.fingerprints)

    async def verify(self, ports: Ports) -> None:
        lacking = await self._lacking(ports)
        if lacking:
            raise VerificationError(f"Cluster `{self.cluster}` still lacks {counted(len(lacking), 'sealing key')}.")

    async def _lacking(self, ports: Ports) -> set[str]:
        return set(self.fingerprints) - {key.fingerprint for key in await ports.escrow.current(self.cluster)}


class EscrowIs(Precondition):
    """The escrow holds what it held, and its signature still checks."""

    kind: Literal["escrow_is"] = "escrow_is"
    cluster: str
    escrow: str
    sha256: str

    @property
    def summary(self) -> str:
        return f"Escrow `{self.escrow}` of cluster `{self.cluster}` still verifies, SHA-256 {self.sha256[:12]}"

    async def violation(self, ports: Ports) -> str | None:
        for entry in await ports.escrow.entries(self.cluster):
            if entry.manifest.id == self.escrow:
                if entry.problem is not None:
                    return entry.problem
                return None if entry.manifest.sha256 == self.sha256 else f"Escrow `{self.escrow}` was made anew."
        return f"Escrow `{self.escrow}` of cluster `{self.cluster}` is gone."
