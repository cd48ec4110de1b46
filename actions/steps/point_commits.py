"""The commit of a recovery point: each repository whose branch goes back to it, and what that brings with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from actions.commits import WayBack, commit_of
from actions.contract import Observation
from actions.errors import DrError
from actions.images import ImageName, mirrored
from actions.manifests import Json
from actions.points import ManifestsPart, RecoveryPoint
from actions.ports import Ports
from actions.site import ManifestsPolicy, Site, WorkloadRef
from actions.steps.commits import BranchIs, CommitManifests, back_to
from actions.steps.gitops import Controller
from actions.steps.phrases import counted, names
from actions.steps.point_share import ManualLine, Share

SECRETS = frozenset({"Secret", "SealedSecret"})


class Named(NamedTuple):
    """An object of a cluster."""

    cluster: str
    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Commits:
    """What the branches will say once the plan has run, by cluster."""

    share: Share
    carried: tuple[str, ...] = ()  # names of the repositories that get a commit
    covered: frozenset[tuple[str, str]] = frozenset()  # of `controllers`: those whose commit the branches will hold
    clusters: frozenset[str] = frozenset()  # whose branch holds the point's folder once the plan has run
    objects: Mapping[Named, Json] = field(default_factory=dict)  # of those clusters, as at the point's commit
    before: Mapping[Named, Json] = field(default_factory=dict)  # the same as the branch has them now

    def brings(self, secret: str) -> bool | None:
        """Whether a Secret or SealedSecret, by its name in a point, is written anew with the point's commit: in Git,
        and otherwise than now. None where nothing is known of its cluster's commit."""
        kind, _, path = secret.partition(" ")
        if not path:
            return None
        cluster, namespace, name = path.split("/", 2)
        if cluster not in self.clusters:
            return None
        found = [Named(cluster, each, namespace, name) for each in (kind, "SealedSecret")]
        return any(each in self.objects and self.objects[each] != self.before.get(each) for each in found)

    @property
    def secrets(self) -> list[str]:
        """Secrets and SealedSecrets that are otherwise at the point's commit than in the branch now."""
        changed = [each for each in self.objects if self.objects[each] != self.before.get(each)]
        return sorted(f"{each.kind} {each.namespace}/{each.name}" for each in changed if each.kind in SECRETS)

    def workload(self, ref: WorkloadRef) -> Json | None:
        """The manifest of a workload; None where Git has none that can be read."""
        return self.objects.get(Named(ref.cluster, ref.kind.value, ref.namespace, ref.name))


async def commits(
    ports: Ports, point: RecoveryPoint, now: RecoveryPoint, plan_id: str, *, exposed: Sequence[str] = ()
) -> Commits:
    """Of all repositories of the plan; nothing is pushed. What cannot go back is a manual line. After what `exposed`
    tells of, neither can a commit that would write a Secret anew as it was: its value may be known to others."""
    found = await _commits(ports, point, now, plan_id, "")
    if not exposed or not found.secrets:
        return found
    why = (
        f"That would write {names(found.secrets)} anew as at the point, which may be known to others or be out of use: "
        f"{exposed[0]} Look through it, and commit what must go back by hand."
    )
    return await _commits(ports, point, now, plan_id, why)


async def _commits(ports: Ports, point: RecoveryPoint, now: RecoveryPoint, plan_id: str, but: str) -> Commits:
    """`but`: why none goes back, if that is so."""
    shares: list[Share] = []
    carried: list[str] = []
    objects: dict[Named, Json] = {}
    before: dict[Named, Json] = {}
    clusters: set[str] = set()
    covered: set[tuple[str, str]] = set()
    reasons: dict[tuple[str, str], str] = {}
    for name, policy in sorted(ports.site.manifests.items()):
        parts = [part for part in point.manifests if part.cluster == policy.cluster]
        ways, why = ([], but) if but else await _ways(ports, name, parts)
        if why or not ways:
            reasons |= {(part.cluster, part.controller): why for part in parts if why}
            continue
        way, own = ways[0], {way.commit for way in ways}
        covered |= {(part.cluster, part.controller) for part in parts if commit_of(part.revision) in own}
        clusters.add(policy.cluster)
        objects |= await _objects(ports, policy, way.commit)
        before |= await _objects(ports, policy, way.head)
        if way.tree == way.head_tree:
            shares.append(Share(observations=(_seen(policy, way, "holds what it held"),)))
            continue
        carried.append(name)
        shares.append(
            Share(
                steps=(CommitManifests.of(policy, way, plan_id),),
                preconditions=(BranchIs(name=name, branch=policy.branch, head=way.head),),
                observations=(_seen(policy, way, _words(way)),),
            )
        )
    left = [key for key in controllers(point) if key not in covered]
    manual = await manifest_lines(ports, point, now, reasons={key: reasons.get(key, "") for key in left})
    return Commits(
        share=Share(
            steps=tuple(step for share in shares for step in share.steps),
            preconditions=tuple(each for share in shares for each in share.preconditions),
            observations=tuple(each for share in shares for each in share.observations),
            manual=tuple(manual),
        ),
        carried=tuple(carried),
        covered=frozenset(covered),
        clusters=frozenset(clusters),
        objects=objects,
        before=before,
    )


async def _ways(ports: Ports, name: str, parts: Sequence[ManifestsPart]) -> tuple[list[WayBack], str]:
    """Of each commit of these controllers that is in this repository: all lead to the same. Or why there is none."""
    ways: list[WayBack] = []
    for commit in sorted({commit for part in parts if (commit := commit_of(part.revision))}):
        try:
            way = await ports.branches.way_back(name, commit)
        except DrError as error:
            return [], str(error)
        ways += [] if way is None else [way]
    if len({way.tree for way in ways}) > 1:
        return [], f"The controllers had applied {len(ways)} commits of `{name}` that differ, and a branch holds one."
    return ways, ""


async def _objects(ports: Ports, policy: ManifestsPolicy, commit: str) -> dict[Named, Json]:
    found = {}
    for each in (await ports.branches.manifests(policy.name, commit)).objects:
        metadata = each["metadata"]
        namespace = str(metadata.get("namespace") or policy.namespace)
        found[Named(policy.cluster, each["kind"], namespace, metadata["name"])] = each
    return found


def _seen(policy: ManifestsPolicy, way: WayBack, words: str) -> Observation:
    return Observation(name=f"branch {policy.branch} of {policy.name}", value=f"{words} at `{way.commit[:12]}`")


def _words(way: WayBack) -> str:
    found = "" if way.source == "the repository" else f"; that commit comes out of {way.source}"
    return (
        f"{counted(way.changed, 'file')} go back, of {counted(way.later, 'later commit')}, which stay in its "
        f"history{found}; what it held"
    )


async def manifest_lines(
    ports: Ports, point: RecoveryPoint, now: RecoveryPoint, *, reasons: Mapping[tuple[str, str], str]
) -> list[ManualLine]:
    """Commits that controllers have applied since and that people bring back: those of `reasons`, each with why the
    bot does not."""
    there = {(part.cluster, part.controller): part.revision for part in now.manifests}
    lines = []
    for part in point.manifests:
        key = (part.cluster, part.controller)
        if key not in reasons or await _alike(ports, part, there.get(key, "")):
            continue
        found, branch = there.get(key, ""), await _in_branch(ports, part)
        state = f"has applied `{found[:12]}`" if found else "does not tell what it has applied"
        why = f"{part.controller} {state}, the point is of `{part.revision[:12]}`. {reasons[key]}".strip()
        if branch:
            why = f"{why} The branch of `{branch}` has it, so only applying it is left."
        command = f"drbot drift {branch}" if branch else _by_hand(part, ports.site)
        lines.append(ManualLine(what=f"manifests of {part.cluster}", why=why, command=command))
    return lines


def key_of(controller: Controller) -> tuple[str, str]:
    """As `controllers` has it."""
    return controller.ref.cluster, f"{controller.tool} {controller.kind} {controller.namespace}/{controller.name}"


def controllers(point: RecoveryPoint) -> list[tuple[str, str]]:
    """Of each commit of the point: the cluster, and the controller that had applied it."""
    return [(part.cluster, part.controller) for part in point.manifests]


async def applied(ports: Ports, point: RecoveryPoint, controller: Controller) -> bool:
    """Whether this controller says that it has applied what it had applied at the point."""
    facts = await ports.cluster.workload(controller.ref)
    if facts is None or facts.gitops is None:
        return False
    parts = [part for part in point.manifests if (part.cluster, part.controller) == key_of(controller)]
    return all([await _alike(ports, part, facts.gitops.revision) for part in parts])


async def _alike(ports: Ports, part: ManifestsPart, found: str) -> bool:
    """Whether what is applied now is what was applied then, if by another commit."""
    one, other = commit_of(part.revision), commit_of(found)
    if part.revision == found or not one or not other:
        return part.revision == found
    for name in _repositories(ports.site, part.cluster):
        try:
            if await ports.branches.alike(name, one, other):
                return True
        except DrError:
            continue  # nobody can tell, so it is told
    return False


async def _in_branch(ports: Ports, part: ManifestsPart) -> str:
    """The repository whose branch holds what this controller had applied; empty when none does."""
    commit = commit_of(part.revision)
    for name in _repositories(ports.site, part.cluster) if commit else ():
        try:
            head = await ports.branches.head(name)
            if head is not None and await ports.branches.alike(name, head, commit):
                return name
        except DrError:
            continue
    return ""


def _repositories(site: Site, cluster: str) -> list[str]:
    return sorted(name for name, policy in site.manifests.items() if policy.cluster == cluster)


def _by_hand(part: ManifestsPart, site: Site) -> str:
    policies = [site.manifests[name] for name in _repositories(site, part.cluster)]
    branch, path = (policies[0].branch, policies[0].path.strip("/")) if policies else ("main", "")
    return " && ".join(back_to(commit_of(part.revision) or part.revision, branch, path, ""))


async def unlike(ports: Ports, commits: Commits, ref: WorkloadRef, images: Mapping[str, str]) -> str:
    """Why a controller that applies the point's commit would set other images than these; empty when it would not."""
    manifest = commits.workload(ref)
    if manifest is None:
        return "what it makes of this workload cannot be read here"
    spec = manifest.get("spec") or {}
    spec = (spec.get("jobTemplate") or {}).get("spec") or spec
    containers = ((spec.get("template") or {}).get("spec") or {}).get("containers") or []
    asked = {str(each.get("name")): str(each.get("image")) for each in containers if isinstance(each, dict)}
    for name, image in images.items():
        if name in asked and asked[name] != image and not await _points_to(ports, asked[name], ImageName.parse(image)):
            return f"the commit names `{asked[name]}` for `{name}`, which need not be `{image}` any more"
    return ""


async def _points_to(ports: Ports, text: str, image: ImageName) -> bool:
    """Whether this name leads to that digest, by itself or by what the registry says of its tag."""
    named, policy = ImageName.parse(text), ports.site.images
    if not image.digest or named.name != image.name:
        return False
    if named.digest or policy is None:
        return named.digest == image.digest
    repository = mirrored(named, policy.mirrors)
    if repository is None:
        return False
    try:
        facts = await ports.registry.find(repository, named.tag or "latest")
    except DrError:
        return False
    return facts is not None and facts.digest == image.digest
