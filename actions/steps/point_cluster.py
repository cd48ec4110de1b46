"""The cluster of a recovery point beside the cluster of now: images, manifests, sealing keys.

Both sides are recovery points: the recorded one, and what a point of now would hold.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from actions.commits import commit_of
from actions.errors import DrError
from actions.images import ImageName
from actions.points import ContainerImage, ImagePart, ManifestsPart, RecoveryPoint, WorkloadPart
from actions.ports import Ports
from actions.site import WorkloadRef
from actions.steps import byhand
from actions.steps.images import ImagesAre, SetImages, images_set
from actions.steps.phrases import names
from actions.steps.point_share import ManualLine


class ImageChange(NamedTuple):
    """A workload whose containers ran other images at the point. Container -> image."""

    ref: WorkloadRef
    before: dict[str, str]
    after: dict[str, str]

    @property
    def step(self) -> SetImages:
        return SetImages(ref=self.ref, images_before=self.before, images=self.after)

    @property
    def precondition(self) -> ImagesAre:
        return ImagesAre(ref=self.ref, images=self.before)


def image_changes(point: RecoveryPoint, now: RecoveryPoint) -> list[ImageChange]:
    """What has to be set back; a container that is there no more is none of it."""
    then, since, found = tagged(point), tagged(now), []
    for part, there in _pairs(point, now):
        changed = [(each, there[each.name]) for each in part.containers if each.name in there]
        changed = [(each, other) for each, other in changed if not _same(each, other, then, since)]
        if changed:
            before = {other.name: other.image for _, other in changed}
            found.append(ImageChange(part.ref, before, {each.name: _exact(each, then) for each, _ in changed}))
    return found


def _pairs(point: RecoveryPoint, now: RecoveryPoint) -> Iterator[tuple[WorkloadPart, dict[str, ContainerImage]]]:
    there = {part.ref: {each.name: each for each in part.containers} for part in now.workloads}
    return ((part, there[part.ref]) for part in point.workloads if part.ref in there)


def tagged(point: RecoveryPoint) -> dict[str, str]:
    """Digest of each image that was asked for by tag, as the registry of the recovery region had the tag then: what a
    pod that started at that moment would have got."""
    return {part.image: part.digest for part in point.images if part.digest and not ImageName.parse(part.image).digest}


def _same(one: ContainerImage, other: ContainerImage, then: Mapping[str, str], since: Mapping[str, str]) -> bool:
    known, found = one.digest or then.get(one.image), other.digest or since.get(other.image)
    if known and found:
        return known == found
    return not one.digest and one.image == other.image


def _exact(each: ContainerImage, then: Mapping[str, str]) -> str:
    return each.model_copy(update={"digest": each.digest or then.get(each.image, "")}).exact


def image_lines(point: RecoveryPoint, now: RecoveryPoint) -> Iterator[ManualLine]:
    """Images that nobody can set back for sure."""
    if not point.workloads and point.images:
        why = f"`{point.id}` was recorded by a version that did not note which workload runs which image."
        yield ManualLine(what="images", why=why, command=f"drbot point list {point.id}")
    there = {part.ref: {each.name for each in part.containers} for part in now.workloads}
    then, since = tagged(point), tagged(now)
    for part in point.workloads:
        wanted = {each.name: _exact(each, then) for each in part.containers}
        gone = {name: image for name, image in wanted.items() if name not in there.get(part.ref, set())}
        if gone:
            what = f"its container {names(gone)} is not there" if part.ref in there else "it does not exist"
            yield ManualLine(
                what=f"images of {part.ref.name}",
                why=f"{part.ref} cannot be set back: {what}.",
                command=images_set(part.ref, gone),
            )
    known = {image for image in then if image in since}
    vague = {each.image for part in point.workloads for each in part.containers if not each.digest} - known
    if vague:
        why = f"Known by tag alone, so nobody can tell whether it was moved since: {names(sorted(vague))}."
        yield ManualLine(what="images by tag", why=why, command="drbot images")


async def registry_lines(ports: Ports, point: RecoveryPoint) -> list[ManualLine]:
    """Digests of the point that the registry of the recovery region does not hold now."""
    policy = ports.site.images
    if policy is None:
        return []
    host = policy.url.rpartition("://")[2].rstrip("/")

    async def one(part: ImagePart) -> ManualLine | None:
        try:
            facts = await ports.registry.find(part.repository, part.digest)
            lack = "is not there" if facts is None else "lacks layers there" if facts.missing else ""
        except DrError as error:
            lack = f"could not be looked for: {error}"
        if not lack:
            return None
        return ManualLine(
            what=f"image {part.repository}",
            why=f"`{part.repository}@{part.digest[:19]}` of the point {lack} (`{policy.url}`).",
            command=shlex.join(["crane", "copy", part.image, f"{host}/{part.repository}:{point.id}"]),
        )

    # At the same time: of a registry that hangs, each would wait its whole time.
    asked = await asyncio.gather(*(one(part) for part in point.images if part.repository and part.digest))
    return [line for line in asked if line is not None]


def changed_versions(point: RecoveryPoint, now: RecoveryPoint) -> Iterator[tuple[str, str]]:
    """Secrets that have another version than the point's, each with what has changed. One that came later is left
    alone, as everything is that came later."""
    there = {each.name: each.version for each in now.versions}
    for each in point.versions:
        found = there.get(each.name)
        if found is None or found != each.version:
            yield each.name, _changed(each.version, found)


def version_line(name: str, changed: str) -> ManualLine:
    """Its value is people's."""
    return ManualLine(what="secrets", why=f"`{name}` {changed}.", command=_looked_at(name))


def _changed(then: str, now: str | None) -> str:
    if now is None:
        return "is not there, or may not be looked at"
    if then.startswith("hmac ") and then.rpartition(" by ")[2] != now.rpartition(" by ")[2]:
        return "cannot be compared: the signing key of recovery points was exchanged"
    if then.startswith("hmac "):
        return "has another value than in the point"
    version, _, uid = then.partition(" of ")
    newer, _, other = now.partition(" of ")
    anew = ", and was made anew" if uid != other else ""
    return f"was version {version} and is version {newer} now{anew}"


def _looked_at(name: str) -> str:
    """Who wrote it and when; never the value."""
    kind, _, path = name.partition(" ")
    if not path:
        return "drbot doctor"
    cluster, namespace, secret = path.split("/", 2)
    return byhand.kubectl(
        cluster, namespace, "get", f"{kind.lower()}/{secret}", "-o", "jsonpath={.metadata.managedFields}"
    )


async def mirror_words(ports: Ports, parts: Sequence[ManifestsPart]) -> list[tuple[str, str]]:
    """Of each repository: whether the mirror has a bundle of the commit, and how far the cluster has drifted."""
    found = []
    for name, policy in sorted(ports.site.manifests.items()):
        if not policy.cluster:
            continue  # of a cluster that is not there
        commits = sorted(
            {commit_of(part.revision) or part.revision for part in parts if part.cluster == policy.cluster}
        )
        try:
            held = {each.manifest.commit for each in await ports.manifests.bundles(name) if each.problem is None}
            drift = await ports.manifests.drift(name)
        except DrError as error:
            found.append((f"manifests {name}", f"could not be looked at: {error}"))
            continue
        words = [f"`{commit[:12]}` {'has' if commit in held else 'has no'} bundle of its own" for commit in commits]
        words.append(f"{len(drift.entries)} differences between cluster and `{drift.commit[:12]}`")
        found.append((f"manifests {name}", "; ".join(words)))
    return found
