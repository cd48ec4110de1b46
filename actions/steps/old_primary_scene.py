"""How the old primary of a promotion is going to be shut down, and what its signers should know of that."""

from __future__ import annotations

from pathlib import PurePosixPath

from actions.contract import Finding, Verdict
from actions.errors import DrError
from actions.ports import Ports, StopFacts, WorkloadFacts
from actions.site import Frozen
from actions.steps.phrases import counted, names


class StopScene(Frozen):
    """What is found of it while it answers."""

    server: str
    facts: StopFacts
    place: WorkloadFacts | None = None  # what is scaled to 0
    refusal: str = ""  # why it is left running; empty: it is shut down
    followers: tuple[str, ...] = ()  # besides the archiver

    @property
    def how(self) -> str:
        """For the signers, beside the figures."""
        if self.refusal:
            return "goes on running, closed"
        if self.place is not None:
            return f"{self.place.ref} is scaled from {self.place.replicas} to 0, once the application was checked"
        return "asked through SQL for a fast shutdown (SIGINT to its postmaster), once the application was checked"


async def look_at_stop(ports: Ports, server: str) -> StopScene:
    """Of a server that answers. Raises what its port raises."""
    facts = await ports.postgres.stopping(server)
    policy = ports.site.physical.get(server)
    slot = "" if policy is None else policy.slot
    scene = StopScene(server=server, facts=facts, followers=tuple(name for name in facts.followers if name != slot))
    ref = ports.site.servers[server].workload
    if ref is None:
        return scene.model_copy(update={"refusal": facts.hindrance})
    try:
        place = await ports.cluster.workload(ref)
    except DrError as error:
        return scene.model_copy(update={"refusal": f"{ref}, which runs it, could not be looked at ({error})"})
    return scene.model_copy(update={"place": place, "refusal": _refusal(str(ref), place, facts.directory)})


def _refusal(ref: str, place: WorkloadFacts | None, directory: str) -> str:
    if place is None:
        return f"there is no {ref}, which the plan file calls its `workload`"
    if not place.replicas:
        return f"{ref}, which the plan file calls its `workload`, is at 0 while it answers"
    if not any(_within(directory, path) for path in place.lasting):
        where = f"`{directory}`" if directory else "any path"
        return f"at 0 {ref} would lose its data: it has no volume at {where} that outlives its pods"
    return ""


def _within(directory: str, path: str) -> bool:
    """Where nobody may know the directory, any volume has to do."""
    return not directory or PurePosixPath(directory).is_relative_to(PurePosixPath(path))


def stop_findings(scene: StopScene) -> list[Finding]:
    """That it is closed, and what becomes of it then."""
    closed = f"`{scene.server}` is closed to everybody but administrators, over restarts"
    if scene.refusal:
        detail = f"{closed}, and goes on running: {scene.refusal}."
        return [Finding(check="old primary", verdict=Verdict.WARN, detail=detail, hint=_hint(scene))]
    found = [Finding(check="old primary", verdict=Verdict.OK, detail=f"{closed}, shut down at the end, and kept.")]
    if scene.followers:
        found.append(
            Finding(
                check="standbys",
                verdict=Verdict.WARN,
                detail=f"{names(scene.followers)} stream from `{scene.server}` and go on showing what it held.",
                hint="Pause what would promote one of them when it ends (Patroni, repmgr, pg_auto_failover) before "
                "you sign. Make them anew from the new primary.",
            )
        )
    if scene.facts.archiving_fails or scene.facts.unarchived:
        fails = ", which fails" if scene.facts.archiving_fails else ""
        waiting = counted(scene.facts.unarchived or 0, "closed segment")
        found.append(
            Finding(
                check="archive of the old primary",
                verdict=Verdict.WARN,
                detail=f"{waiting} of WAL not archived yet; its shutdown waits for `archive_command`{fails}. "
                "Nothing else waits for it.",
            )
        )
    return found


async def workload_findings(ports: Ports, server: str) -> list[Finding]:
    """Of a server that runs as a workload, by the plan file: that a promotion could not scale it away, long before."""
    if ports.site.servers[server].workload is None:
        return []
    scene = await look_at_stop(ports, server)
    if not scene.refusal:
        return []
    detail = f"a promotion would leave it running, closed: {scene.refusal}"
    hint = "Correct its `workload` in the plan file, or the volume of its data."
    return [Finding(check=f"server {server}", verdict=Verdict.WARN, detail=detail, hint=hint)]


def _hint(scene: StopScene) -> str:
    if scene.place is not None:
        return "Stop it by hand when the application runs on the new one, so that its data stays."
    return (
        "Stop it there when the application runs on the new one: `pg_ctl stop -m fast`, or `systemctl disable --now` "
        "with its unit."
    )
