"""The cluster of a recovery point beside the cluster of now: images, manifests, sealing keys.

Both sides are recovery points: the recorded one, and what a point of now would hold.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from actions.errors import DrError
from actions.points import ContainerImage, ManifestsPart, RecoveryPoint, WorkloadPart
from actions.ports import Ports
from actions.site import Site, WorkloadRef
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
    found = []
    for part, there in _pairs(point, now):
        changed = [(each, there[each.name]) for each in part.containers if each.name in there]
        changed = [(each, other) for each, other in changed if not _same(each, other)]
        if changed:
            before = {other.name: other.image for _, other in changed}
            found.append(ImageChange(part.ref, before, {each.name: each.exact for each, _ in changed}))
    return found


def _pairs(point: RecoveryPoint, now: RecoveryPoint) -> Iterator[tuple[WorkloadPart, dict[str, ContainerImage]]]:
    there = {part.ref: {each.name: each for each in part.containers} for part in now.workloads}
    return ((part, there[part.ref]) for part in point.workloads if part.ref in there)


def _same(then: ContainerImage, now: ContainerImage) -> bool:
    return then.digest == now.digest if then.digest else then.image == now.image


def image_lines(point: RecoveryPoint, now: RecoveryPoint) -> Iterator[ManualLine]:
    """Images that nobody can set back for sure."""
    if not point.workloads and point.images:
        why = f"`{point.id}` was recorded by a version that did not note which workload runs which image."
        yield ManualLine(what="images", why=why, command=f"drbot point list {point.id}")
    there = {part.ref: {each.name for each in part.containers} for part in now.workloads}
    for part in point.workloads:
        wanted = {each.name: each.exact for each in part.containers}
        gone = {name: image for name, image in wanted.items() if name not in there.get(part.ref, set())}
        if gone:
            what = f"its container {names(gone)} is not there" if part.ref in there else "it does not exist"
            yield ManualLine(
                what=f"images of {part.ref.name}",
                why=f"{part.ref} cannot be set back: {what}.",
                command=images_set(part.ref, gone),
            )
    vague = {each.image for part in point.workloads for each in part.containers if not each.digest}
    if vague:
        why = f"Known by tag alone, so nobody can tell whether it was moved since: {names(sorted(vague))}."
        yield ManualLine(what="images by tag", why=why, command="drbot images")


async def registry_lines(ports: Ports, point: RecoveryPoint) -> list[ManualLine]:
    """Digests of the point that the registry of the recovery region does not hold now."""
    policy, found = ports.site.images, []
    for part in point.images:
        if policy is None or not part.repository or not part.digest:
            continue
        try:
            facts = await ports.registry.find(part.repository, part.digest)
            lack = "is not there" if facts is None else "lacks layers there" if facts.missing else ""
        except DrError as error:
            lack = f"could not be looked for: {error}"
        if lack:
            host = policy.url.rpartition("://")[2].rstrip("/")
            found.append(
                ManualLine(
                    what=f"image {part.repository}",
                    why=f"`{part.repository}@{part.digest[:19]}` of the point {lack} (`{policy.url}`).",
                    command=shlex.join(["crane", "copy", part.image, f"{host}/{part.repository}:{point.id}"]),
                )
            )
    return found


def manifest_lines(point: RecoveryPoint, now: RecoveryPoint, site: Site) -> Iterator[ManualLine]:
    """Commits that controllers have applied since: the repository is people's."""
    there = {(part.cluster, part.controller): part.revision for part in now.manifests}
    for part in point.manifests:
        found = there.get((part.cluster, part.controller), "")
        if found != part.revision:
            state = f"has applied `{found[:12]}`" if found else "does not tell what it has applied"
            yield ManualLine(
                what=f"manifests of {part.cluster}",
                why=f"{part.controller} {state}, the point is of `{part.revision[:12]}`.",
                command=_back_to(part, site),
            )


def _back_to(part: ManifestsPart, site: Site) -> str:
    branch = next((policy.branch for policy in site.manifests.values() if policy.cluster == part.cluster), "main")
    commands = (
        ["git", "read-tree", "-u", "--reset", part.revision],
        ["git", "commit", "-m", f"Go back to {part.revision[:12]}"],
        ["git", "push", "origin", f"HEAD:{branch}"],
    )
    return " && ".join(map(shlex.join, commands))


def key_lines(point: RecoveryPoint, now: RecoveryPoint) -> Iterator[ManualLine]:
    """Sealing keys of the point that the cluster of now does not have in escrow any more."""
    there = {part.cluster: set(part.keys) for part in now.secrets}
    for part in point.secrets:
        gone = set(part.keys) - there.get(part.cluster, set())
        if gone:
            yield ManualLine(
                what=f"sealing keys of {part.cluster}",
                why=f"{len(gone)} key(s) of escrow `{part.escrow}` are not in the newest one.",
                command="drbot secrets status",
            )


def version_lines(point: RecoveryPoint, now: RecoveryPoint) -> Iterator[ManualLine]:
    """Secrets that have another version than the point's. Their values are people's."""
    there = {each.name: each.version for each in now.versions}
    for each in point.versions:
        found = there.get(each.name)
        if found is None or found != each.version:
            yield ManualLine(
                what="secrets", why=f"`{each.name}` {_changed(each.version, found)}.", command=_looked_at(each.name)
            )
    # A secret that came later is left alone, as everything is that came later.


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
        commits = sorted({part.revision for part in parts if part.cluster == policy.cluster})
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
