"""The step that mirrors a repository of manifests."""

from __future__ import annotations

import shlex
from datetime import timedelta
from typing import Literal

from actions.contract import Probe, Step
from actions.errors import VerificationError
from actions.ports import Ports, Progress
from actions.steps import byhand


class MirrorRepository(Step):
    """Everything of the repository in the mirror, and a bundle of what is new in it in the bucket."""

    kind: Literal["mirror_repository"] = "mirror_repository"
    timeout: timedelta = timedelta(minutes=30)
    name: str
    url: str
    branch: str
    mirror: str
    bucket: str
    endpoint: str | None
    prefix: str
    recipients: tuple[str, ...]
    requested_by: str

    @property
    def summary(self) -> str:
        return f"Mirror branch `{self.branch}` of `{self.url}`, and all others, into bucket `{self.bucket}`"

    @property
    def before(self) -> str:
        return "what was mirrored until now"

    @property
    def after(self) -> str:
        return "a proven, encrypted and signed bundle of all branches and tags; what was there before stays"

    def by_hand(self) -> tuple[str, ...]:
        recipients = " ".join(f"-r {shlex.quote(item)}" for item in self.recipients)
        target = f"s3://{self.bucket}/{self.prefix}by-hand/{self.mirror}.bundle.age"
        return (
            f"git clone --mirror {shlex.quote(self.url)} {self.mirror}.git",
            f"git -C {self.mirror}.git bundle create ../{self.mirror}.bundle --all",
            f"git -C {self.mirror}.git bundle verify ../{self.mirror}.bundle",
            f"age {recipients} -o {self.mirror}.bundle.age {self.mirror}.bundle",
            byhand.aws(self.endpoint, "s3", "cp", f"{self.mirror}.bundle.age", target),
        )

    async def probe(self, ports: Ports) -> Probe:
        state = await ports.manifests.state(self.name)
        return Probe.DONE if state is not None and state.mirror == self.mirror else Probe.TODO

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - git tells nothing we could show
        await ports.manifests.mirror(self.mirror, self.name, requested_by=self.requested_by)

    async def verify(self, ports: Ports) -> None:
        state = await ports.manifests.state(self.name)
        if state is None or state.mirror != self.mirror:
            raise VerificationError(f"The mirror of `{self.name}` was not brought up to date. Try again.")
        bundles = await ports.manifests.bundles(self.name)
        problems = [entry.problem for entry in bundles if entry.manifest.commit == state.head]
        if None not in problems:
            missing = f"There is no bundle of commit `{state.head[:12]}` in `{self.bucket}`."
            raise VerificationError(problems[0] if problems and problems[0] else missing)

    async def undo(self, ports: Ports) -> None:
        """The repository was only read; what is mirrored is kept."""
