"""The branch of a manifests repository, taken back to an earlier commit by a new one on top."""

from __future__ import annotations

import shlex
from datetime import timedelta
from typing import ClassVar, Literal

from actions.commits import Carried, WayBack
from actions.contract import Precondition, Probe, Step
from actions.errors import PermanentError, VerificationError
from actions.ports import Ports, Progress
from actions.site import ManifestsPolicy


class CommitManifests(Step):
    """One commit on top of the branch holds what an earlier one held; everything in between stays in its history."""

    kind: Literal["commit_manifests"] = "commit_manifests"
    timeout: timedelta = timedelta(minutes=15)
    undo_on_failure: bool = True
    name: str
    url: str
    branch: str
    path: str  # empty: all of the repository
    head: str
    head_tree: str
    commit: str
    tree: str
    mark: str

    @classmethod
    def of(cls, policy: ManifestsPolicy, way: WayBack, mark: str) -> CommitManifests:
        return cls(
            name=way.name,
            url=policy.url,
            branch=policy.branch,
            path=policy.path.strip("/"),
            head=way.head,
            head_tree=way.head_tree,
            commit=way.commit,
            tree=way.tree,
            mark=mark,
        )

    @property
    def summary(self) -> str:
        what = f"folder `{self.path}`" if self.path else "everything"
        return f"Push a commit on top of `{self.branch}` of `{self.url}` that has {what} as at `{self.commit[:12]}`"

    @property
    def before(self) -> str:
        return f"branch `{self.branch}` at `{self.head[:12]}`"

    @property
    def after(self) -> str:
        return f"one commit more, which holds tree `{self.tree[:12]}`; the history stays as it is"

    def by_hand(self) -> tuple[str, ...]:
        return (
            shlex.join(["git", "clone", "--branch", self.branch, self.url, "manifests"]),
            *back_to(self.commit, self.branch, self.path, self.head),
        )

    async def probe(self, ports: Ports) -> Probe:
        return Probe.TODO if await self._carried(ports) is None else Probe.DONE

    async def apply(self, ports: Ports, progress: Progress) -> None:  # noqa: ARG002 - git tells nothing we could show
        await ports.branches.carry(
            self.name,
            over=self.head,
            like=self.commit,
            tree=self.tree,
            mark=self.mark,
            subject=f"Go back to {self.commit[:12]}",
        )

    async def verify(self, ports: Ports) -> None:
        found = await self._carried(ports)
        if found is None:
            raise VerificationError(f"Branch `{self.branch}` of `{self.url}` has no commit of this plan.")
        if found.head != found.commit or found.tree != self.tree:
            raise VerificationError(
                f"Branch `{self.branch}` of `{self.url}` went on to `{found.head[:12]}` after the commit of this plan "
                f"(`{found.commit[:12]}`). Ask who pushes."
            )

    async def outcome(self, ports: Ports) -> str:
        found = await self._carried(ports)
        return "" if found is None else f"Commit `{found.commit}` is on branch `{self.branch}`."

    async def undo(self, ports: Ports) -> None:
        found = await self._carried(ports)
        if found is None or await self._put_back(ports) is not None:
            return
        if found.head != found.commit:
            raise PermanentError(
                f"Branch `{self.branch}` of `{self.url}` went on to `{found.head[:12]}` since. Put back by hand what "
                f"must not stay of `{found.commit[:12]}`."
            )
        await ports.branches.carry(
            self.name,
            over=found.commit,
            like=self.head,
            tree=self.head_tree,
            mark=f"{self.mark} put back",
            subject=f"Put back {self.head[:12]}: the recovery was not finished",
        )

    def undo_by_hand(self) -> tuple[str, ...]:
        return back_to(self.head, self.branch, self.path, "")

    async def undone(self, ports: Ports) -> None:
        if await self._carried(ports) is not None and await self._put_back(ports) is None:
            raise VerificationError(f"Branch `{self.branch}` of `{self.url}` still holds the commit of this plan.")

    async def _carried(self, ports: Ports) -> Carried | None:
        return await ports.branches.carried(self.name, self.mark, since=self.head)

    async def _put_back(self, ports: Ports) -> Carried | None:
        return await ports.branches.carried(self.name, f"{self.mark} put back", since=self.head)


class BranchIs(Precondition):
    """Nobody has pushed to the branch."""

    spent: ClassVar[bool] = True
    kind: Literal["branch_is"] = "branch_is"
    name: str
    branch: str
    head: str

    @property
    def summary(self) -> str:
        return f"Branch `{self.branch}` of manifests `{self.name}` is at `{self.head[:12]}`"

    async def violation(self, ports: Ports) -> str | None:
        head = await ports.branches.head(self.name)
        if head == self.head:
            return None
        return f"Branch `{self.branch}` of manifests `{self.name}` is {f'at `{head[:12]}`' if head else 'gone'} now."


def back_to(commit: str, branch: str, path: str, head: str) -> tuple[str, ...]:
    """The git lines, in a clone, that put a commit on top; with `head` only while the branch is there."""
    lines = [["git", "read-tree", "-u", "--reset", commit]]
    if path:
        lines = [
            ["git", "rm", "-r", "--quiet", "--ignore-unmatch", "--", path],
            ["git", "checkout", commit, "--", path],
        ]
    lease = [f"--force-with-lease={branch}:{head}"] if head else []
    lines += [
        ["git", "commit", "-m", f"Go back to {commit[:12]}"],
        ["git", "push", *lease, "origin", f"HEAD:{branch}"],
    ]
    return tuple(map(shlex.join, lines))
