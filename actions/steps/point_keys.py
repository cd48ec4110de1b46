"""The sealing keys of a recovery point: those that a cluster has lost since come back out of their escrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actions.contract import Finding, Observation, Verdict
from actions.errors import DrError, VerificationError
from actions.escrow import EscrowManifest
from actions.images import ImageName
from actions.points import RecoveryPoint, SecretsPart
from actions.ports import Ports
from actions.steps import byhand
from actions.steps.escrow_return import EscrowIs, ReturnKeys
from actions.steps.phrases import counted, names
from actions.steps.point_share import ManualLine, Share, together
from actions.steps.workloads import RestartWorkload

CONTROLLER = "sealed-secrets-controller"
"""The end of the name of its image, wherever that is kept."""


async def keys_share(ports: Ports, point: RecoveryPoint, exposed: Sequence[str], plan_id: str) -> Share:
    """Of every cluster. Keys that came later stay; nothing private is read but to see that the escrow opens. `exposed`
    tells of a breach or a rotation since the point."""
    found = together([await _of(ports, part, plan_id) for part in point.secrets])
    if not found.steps or not exposed:
        return found
    warning = Finding(
        check="sealing keys",
        verdict=Verdict.WARN,
        detail=f"Keys that the cluster has lost come back, and one may have been deleted on purpose: {exposed[0]}",
        hint="Delete such a key again afterwards, and seal anew what it had sealed.",
    )
    return replace(found, findings=(*found.findings, warning))


async def _of(ports: Ports, part: SecretsPart, plan_id: str) -> Share:
    try:
        lacking = await _lacking(ports, part)
        if not lacking:
            return Share()
        manifest = await _holding(ports, part, lacking)
        await ports.escrow.check(part.cluster, manifest.id, lacking)
    except DrError as error:
        return Share(manual=(_line(part, str(error)),))
    keys = tuple(key for key in manifest.keys if key.fingerprint in lacking)
    # Databases and files are worth having without them.
    step = ReturnKeys.of(ports, part.cluster, manifest, keys).model_copy(update={"optional": True})
    restart = await _restart(ports, part.cluster, plan_id)
    came = f"{names(key.name for key in keys)}, out of escrow `{manifest.id}`"
    return Share(
        steps=(step, *restart.steps),
        preconditions=(EscrowIs(cluster=part.cluster, escrow=manifest.id, sha256=manifest.sha256),),
        observations=(Observation(name=f"sealing keys of {part.cluster} that come back", value=came),),
        manual=restart.manual,
    )


async def _restart(ports: Ports, cluster: str, plan_id: str) -> Share:
    """The controller reads its keys when it starts."""
    namespace = ports.site.clusters[cluster].sealed_secrets
    try:
        facts = await ports.cluster.overview(cluster, namespace)
        images = {each.ref: [ImageName.parse(image).repository for image in each.images] for each in facts.workloads}
        found = [ref for ref, names in images.items() if any(name.endswith(CONTROLLER) for name in names)]
        why = f"{len(found)} workloads of `{namespace}` run the image `{CONTROLLER}`."
    except DrError as error:
        found, why = [], str(error)
    if len(found) == 1:
        return Share(steps=(RestartWorkload(ref=found[0], mark=plan_id, optional=True),))
    command = byhand.kubectl(cluster, namespace, "delete", "pod", "-l", f"name={CONTROLLER}")
    why = f"It reads its keys when it starts, and which one it is cannot be told: {why}"
    return Share(manual=(ManualLine(what=f"controller of SealedSecrets in {cluster}", why=why, command=command),))


async def key_lines(ports: Ports, point: RecoveryPoint) -> list[ManualLine]:
    """Sealing keys of the point that a cluster does not have now."""
    found = []
    for part in point.secrets:
        try:
            lacking = await _lacking(ports, part)
        except DrError as error:
            found.append(_line(part, str(error)))
            continue
        if lacking:
            found.append(_line(part, f"{counted(len(lacking), 'key')} of escrow `{part.escrow}` are not there."))
    return found


async def _lacking(ports: Ports, part: SecretsPart) -> set[str]:
    return set(part.keys) - {key.fingerprint for key in await ports.escrow.current(part.cluster)}


async def _holding(ports: Ports, part: SecretsPart, lacking: set[str]) -> EscrowManifest:
    """The escrow of the point, else the newest other one that has all of them."""
    usable = [each.manifest for each in await ports.escrow.entries(part.cluster) if each.problem is None]
    fit = [each for each in usable if lacking <= {key.fingerprint for key in each.keys}]
    own = [each for each in fit if each.id == part.escrow]
    if not fit:
        raise VerificationError(f"No usable escrow holds {counted(len(lacking), 'key')} that `{part.cluster}` lacks.")
    return (own or fit)[0]


def _line(part: SecretsPart, why: str) -> ManualLine:
    return ManualLine(what=f"sealing keys of {part.cluster}", why=why, command="drbot secrets status")
