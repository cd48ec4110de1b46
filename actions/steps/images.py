"""The images of a workload, set as they were at another moment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar, Literal

from actions.contract import Precondition, Probe, Step
from actions.errors import VerificationError
from actions.ports import Ports, Progress
from actions.site import WorkloadKind, WorkloadRef
from actions.steps import byhand
from actions.steps.rollouts import await_rollouts, settled

PATIENCE = timedelta(minutes=8)
UNDO_PATIENCE = timedelta(minutes=1)


class SetImages(Step):
    """Containers of a workload ask for other images, and its rollout is done; without replicas it is done at once."""

    kind: Literal["set_images"] = "set_images"
    timeout: timedelta = PATIENCE + timedelta(minutes=1)
    undo_on_failure: bool = True
    ref: WorkloadRef
    images_before: Mapping[str, str]  # container -> image
    images: Mapping[str, str]  # the same containers

    @property
    def summary(self) -> str:
        return f"Set the images of {self.ref} back: {_listed(self.images)}"

    @property
    def before(self) -> str:
        return _listed(self.images_before)

    @property
    def after(self) -> str:
        return _listed(self.images)

    def by_hand(self) -> tuple[str, ...]:
        lines = (images_set(self.ref, self.images),)
        return lines if self.ref.kind is WorkloadKind.CRON_JOB else (*lines, byhand.rollout_status(self.ref))

    async def _there(self, ports: Ports) -> dict[str, str]:
        facts = await ports.cluster.workload(self.ref)
        there = {} if facts is None else facts.containers
        return {name: there.get(name, "") for name in self.images}

    async def probe(self, ports: Ports) -> Probe:
        there = await self._there(ports)
        if there == self.images:
            return Probe.DONE if (await ports.cluster.rollout(self.ref)).done else Probe.TODO
        fits = all(image in (self.images[name], self.images_before[name]) for name, image in there.items())
        return Probe.TODO if fits else Probe.UNKNOWN

    async def apply(self, ports: Ports, progress: Progress) -> None:
        await ports.cluster.set_images(self.ref, before=self.images_before, after=self.images)
        await await_rollouts(ports, [self.ref], patience=PATIENCE, progress=progress, phase="waiting for")

    async def verify(self, ports: Ports) -> None:
        there = await self._there(ports)
        if there != self.images:
            raise VerificationError(
                f"{self.ref} asks for {_listed(there)}, not for {_listed(self.images)}. Find out who sets them "
                "(GitOps, people)."
            )

    async def undo(self, ports: Ports) -> None:
        await ports.cluster.set_images(self.ref, before=self.images, after=self.images_before)
        # Bounded and not an error: it may not have been healthy before either.
        await settled(ports, [self.ref], patience=UNDO_PATIENCE)

    def undo_by_hand(self) -> tuple[str, ...]:
        return (images_set(self.ref, self.images_before),)


class ImagesAre(Precondition):
    """The containers ask for the images that will be replaced."""

    spent: ClassVar[bool] = True
    kind: Literal["images_are"] = "images_are"
    ref: WorkloadRef
    images: Mapping[str, str]  # container -> image

    @property
    def summary(self) -> str:
        return f"{self.ref} asks for {_listed(self.images)}"

    async def violation(self, ports: Ports) -> str | None:
        facts = await ports.cluster.workload(self.ref)
        there = {} if facts is None else facts.containers
        found = {name: there.get(name, "") for name in self.images}
        return None if found == self.images else f"{self.ref} asks for {_listed(found)} now."


def images_set(ref: WorkloadRef, images: Mapping[str, str]) -> str:
    """The kubectl line that sets the images of these containers."""
    pairs = (f"{name}={image}" for name, image in images.items())
    return byhand.kubectl(ref.cluster, ref.namespace, "set", "image", byhand.thing(ref), *pairs)


def _listed(images: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}` {image or 'nothing'}" for name, image in images.items())
