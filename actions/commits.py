"""The branch of a manifests repository, and the commit on top of it that takes it back to an earlier state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from actions.manifests import Git, Tree
from actions.site import Frozen, ManifestsPolicy


class WayBack(Frozen):
    """A commit on top of `head` that would hold what the branch held at `commit`. It is not made."""

    name: str
    head: str  # of the branch in the repository
    head_tree: str  # what the branch holds
    commit: str
    tree: str  # what it would hold: the plan's folder as at `commit`, everything outside of it as at `head`
    changed: int  # files that differ between the two
    later: int  # commits of the branch that `commit` does not know
    source: str  # where `commit` was found: "the repository", "the mirror", "bundle `4f2c1e0b9d8a`"


class Carried(Frozen):
    """A commit that a plan has pushed, and where its branch is now."""

    commit: str
    tree: str
    head: str


class Branches(Protocol):
    """The plan's branch of each manifests repository, by name of the plan."""

    async def head(self, name: str) -> str | None:
        """Where the branch is in the repository itself; None when it has no such branch."""

    async def may_push(self, name: str) -> None:
        """Raise UserError unless the plan file and the repository let the bot push. Changes nothing; rules for a branch
        are looked at by the repository only when something is really pushed."""

    async def way_back(self, name: str, commit: str) -> WayBack | None:
        """What going back to a commit would do; None when it is neither in the repository nor in its mirror. Changes
        nothing. Raises UserError where it cannot be done from here: no right to push, no identity for the bundles."""

    async def manifests(self, name: str, commit: str) -> Tree:
        """The objects of the plan's folder at a commit, Secrets veiled."""

    async def alike(self, name: str, one: str, other: str) -> bool:
        """Whether the plan's folder is the same at both; False for a commit that is not to be had."""

    async def carried(self, name: str, mark: str, *, since: str) -> Carried | None:
        """The newest commit of the branch with this mark that was put there since; None when there is none."""

    async def carry(self, name: str, *, over: str, like: str, tree: str, mark: str, subject: str) -> str:
        """Put one commit on top of `over` that holds what `like` holds, and give its id. History is kept. Raises
        PreconditionError when the branch is not at `over`, VerificationError when that does not give `tree`."""


class BranchGit(Git, Protocol):
    """Mirrors that can also write: into themselves what people have not pushed, and one branch of the repository."""

    async def folder(self, policy: ManifestsPolicy, commit: str) -> str | None:
        """Id of what the plan's folder holds at a commit; None when it is not there."""

    async def tree(self, policy: ManifestsPolicy, commit: str, *, onto: str) -> str:
        """Id of what `onto` holds with the plan's folder as at `commit`; that folder must be there."""

    async def root(self, name: str, commit: str) -> str:
        """Id of all that a commit holds."""

    async def changed(self, name: str, one: str, other: str) -> int:
        """Files that differ; both are ids of commits or of what they hold."""

    async def later(self, name: str, head: str, since: str) -> Sequence[tuple[str, str]]:
        """Commits that `head` knows and `since` does not, newest first, each with its mark (empty: none)."""

    async def commit(self, name: str, *, tree: str, parent: str, subject: str, mark: str) -> str:
        """Make a commit in the mirror alone; its id."""

    async def may_push(self, policy: ManifestsPolicy, head: str) -> None:
        """As `Branches.may_push`, for the token of `push`; `head` is that of the branch."""

    async def move(self, policy: ManifestsPolicy, commit: str, *, over: str) -> bool:
        """Move the plan's branch from `over` to a commit on top of it, at once or not at all; False when it was not at
        `over`. Raises UserError when the repository refuses."""

    async def take(self, name: str, bundle: Path, commit: str) -> bool:
        """Keep a commit out of a bundle; False when the bundle has it not."""


def commit_of(revision: str) -> str:
    """The hash in `main@sha1:4f1c...`, `main/4f1c...` or `4f1c...`; empty when there is none (a chart's version)."""
    matched = re.search(r"(?:^|[:/@])([0-9a-f]{40}(?:[0-9a-f]{24})?)$", revision)
    return "" if matched is None else matched[1]
