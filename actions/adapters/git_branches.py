"""Commits on top of a branch, made in the bare mirror and pushed: no work tree, no index, nothing checked out.

A push names the commit that the branch must be at (`--force-with-lease`), and what is pushed is a child of that one:
the repository moves the branch in one step or not at all, and never loses a commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actions.adapters.git import LONG, GitMirrors, RejectedError, git_program, object_id
from actions.adapters.programs import ProgramError
from actions.commits import BranchGit
from actions.errors import UserError
from actions.site import ManifestsPolicy

AUTHOR = ("-c", "user.name=superprismora-dr", "-c", "user.email=superprismora-dr@dr.invalid")
TRAILER = "Recovery-Plan"
MOVED = ("stale info", "failed to update ref", "cannot lock ref", "incorrect old value", "fetch first")
RETURNED = "refs/returned"


class GitBranches(GitMirrors, BranchGit):
    """The mirrors of `GitMirrors`, and what is written on top of them."""

    async def folder(self, policy: ManifestsPolicy, commit: str) -> str | None:
        where = f"{object_id(commit)}:{policy.path.strip('/')}"
        if not await self._true(policy.name, "cat-file", "-e", where):
            return None
        return (await self._run(policy.name, "rev-parse", "--verify", where)).text.strip()

    async def root(self, name: str, commit: str) -> str:
        return (await self._run(name, "rev-parse", "--verify", f"{object_id(commit)}^{{tree}}")).text.strip()

    async def tree(self, policy: ManifestsPolicy, commit: str, *, onto: str) -> str:
        found, parts = await self.folder(policy, commit), [part for part in policy.path.split("/") if part]
        if found is None:
            raise UserError(f"Commit `{commit[:12]}` of `{policy.url}` has no folder `{policy.path}`.")
        for depth in range(len(parts) - 1, -1, -1):
            found = await self._with(policy.name, f"{object_id(onto)}:{'/'.join(parts[:depth])}", parts[depth], found)
        return found

    async def _with(self, name: str, parent: str, entry: str, tree: str) -> str:
        """What this folder holds, with `tree` under the name `entry`."""
        listed = b""
        if await self._true(name, "cat-file", "-e", parent):
            listed = (await self._run(name, "ls-tree", "-z", parent)).stdout
        others = [line for line in listed.split(b"\0") if line and line.partition(b"\t")[2] != entry.encode()]
        lines = [*others, f"040000 tree {tree}\t{entry}".encode()]
        made = await self._run(name, "mktree", "-z", stdin=b"".join(line + b"\0" for line in lines))
        return made.text.strip()

    async def changed(self, name: str, one: str, other: str) -> int:
        both = (object_id(one), object_id(other))
        said = await self._run(name, "diff-tree", "-r", "-z", "--name-only", *both, timeout=LONG)
        return len(list(filter(None, said.stdout.split(b"\0"))))

    async def later(self, name: str, head: str, since: str) -> Sequence[tuple[str, str]]:
        shown = f"--format=%H %(trailers:key={TRAILER},valueonly,separator=%x20)"
        said = await self._run(name, "log", shown, f"{object_id(since)}..{object_id(head)}", timeout=LONG)
        lines = (line.partition(" ") for line in said.text.splitlines() if line)
        return [(commit, mark.strip()) for commit, _, mark in lines]

    async def commit(self, name: str, *, tree: str, parent: str, subject: str, mark: str) -> str:
        text = f"{subject}\n\n{TRAILER}: {mark}\n".encode()
        made = await self._run(name, *AUTHOR, "commit-tree", object_id(tree), "-p", object_id(parent), stdin=text)
        return made.text.strip()

    async def may_push(self, policy: ManifestsPolicy, head: str) -> None:
        try:
            await self._push(policy, head, over=head, rehearsed=True)
        except RejectedError as error:
            raise UserError(f"Repository `{policy.url}` takes no push to `{policy.branch}`: {error}") from error

    async def move(self, policy: ManifestsPolicy, commit: str, *, over: str) -> bool:
        try:
            await self._push(policy, commit, over=over)
        except RejectedError as error:
            if any(word in str(error) for word in MOVED):
                return False
            raise UserError(
                f"Repository `{policy.url}` takes no push to `{policy.branch}`: {error} Let the user of `push` write "
                "there, or push by hand."
            ) from error
        return True

    async def _push(self, policy: ManifestsPolicy, commit: str, *, over: str, rehearsed: bool = False) -> None:
        branch = f"refs/heads/{policy.branch}"
        await self._ask(
            policy,
            policy.push,
            *("push", "--quiet", "--no-verify", *(("--dry-run",) if rehearsed else ())),
            *(f"--force-with-lease={branch}:{object_id(over)}", "--end-of-options"),
            *(policy.url, f"{object_id(commit)}:{branch}"),
        )

    async def take(self, name: str, bundle: Path, commit: str) -> bool:
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
        arguments = ("fetch", *options, "--end-of-options", str(bundle), f"+refs/*:{RETURNED}/*")
        try:
            await git_program(self._place(name), *arguments, timeout=LONG, protocol="file")
        except ProgramError as error:
            raise UserError(f"A bundle of `{name}` cannot be read by git: {error}") from error
        found = await self.has(name, commit)
        gone = [f"delete {ref}" for ref in await self._refs(name, RETURNED)]
        kept = [f"update refs/kept/{commit} {commit}"] if found else []
        await self._run(name, "update-ref", "--stdin", stdin="\n".join([*kept, *gone, ""]).encode())
        return found
