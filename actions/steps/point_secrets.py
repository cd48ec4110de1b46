"""The secrets of a recovery point: which of them come back with its commit, and which are people's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actions.points import RecoveryPoint
from actions.steps.point_cluster import changed_versions, version_line
from actions.steps.point_commits import Commits
from actions.steps.point_share import ManualLine


@dataclass(frozen=True, kw_only=True)
class SecretsShare:
    """`returned`: name -> version now, of those that the commit writes anew; the version of any write is another."""

    returned: Mapping[str, str]
    manual: tuple[ManualLine, ...]


def secrets_share(point: RecoveryPoint, now: RecoveryPoint, commits: Commits) -> SecretsShare:
    """Values are in Git, sealed, or nowhere that the bot could take them from."""
    there = {each.name: each.version for each in now.versions}
    returned: dict[str, str] = {}
    manual: list[ManualLine] = []
    for name, changed in changed_versions(point, now):
        match commits.brings(name):
            case True:
                returned[name] = there.get(name, "")
            case False:
                why = f"{changed}; the point's commit does not write it anew, so its value is people's"
                manual.append(version_line(name, why))
            case None:
                manual.append(version_line(name, changed))
    return SecretsShare(returned=returned, manual=tuple(manual))


def secret_lines(point: RecoveryPoint, now: RecoveryPoint, returned: Mapping[str, str]) -> list[ManualLine]:
    """After the run: what still is not as in the point. One of `returned` counts once it was written since."""
    there = {each.name: each.version for each in now.versions}
    lines = []
    for name, changed in changed_versions(point, now):
        if name not in returned:
            lines.append(version_line(name, changed))
        elif there.get(name, "") == returned[name]:
            why = "was not written anew since: its controller has not applied the commit, or could not open it"
            lines.append(version_line(name, why))
    return lines
