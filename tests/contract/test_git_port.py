"""What every `Git` keeps: the program on a repository of this machine, and the fake."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from actions.adapters.git_branches import GitBranches
from actions.commits import BranchGit
from actions.errors import DrError, UserError, VerificationError
from actions.site import ManifestsPolicy
from tests.fakes.files import KEY_SIGNER
from tests.fakes.git import MemoryGit
from tests.fakes.secrets import MemorySecrets
from tests.fakes.world import CUSTODIAN_KEY


@dataclass
class World:
    port: BranchGit
    source: Path
    policy: ManifestsPolicy

    def push(self, files: Mapping[str, str], *, fresh: bool = False) -> str:
        """`fresh` is a push with force that has nothing of what was there."""
        if isinstance(self.port, MemoryGit):
            return self.port.push(files, onto="" if fresh else None)
        if fresh:
            self.git("switch", "--quiet", "--orphan", "fresh")
        for path, text in files.items():
            place = self.source / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", "change")
        if fresh:
            self.git("branch", "--quiet", "-M", "main")
        return self.git("rev-parse", "HEAD").strip()

    def branch(self, name: str, files: Mapping[str, str]) -> str:
        """The commit at its end; the plan's branch stays where it is."""
        if isinstance(self.port, MemoryGit):
            return self.port.push(files, branch=name)
        self.git("switch", "--quiet", "--create", name)
        commit = self.push(files)
        self.git("switch", "--quiet", "main")
        return commit

    @property
    def head(self) -> str:
        """Of the plan's branch in the repository itself."""
        if isinstance(self.port, MemoryGit):
            return self.port.branches["main"]
        return self.git("rev-parse", "refs/heads/main").strip()

    def drop(self, branch: str) -> None:
        if isinstance(self.port, MemoryGit):
            del self.port.branches[branch]
        else:
            self.git("switch", "--quiet", "--detach")
            self.git("branch", "--quiet", "-D", branch)

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example", "-c", "protocol.file.allow=always")
        argv = ["git", *who, "-C", str(self.source), *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=["fake", pytest.param("program", marks=pytest.mark.integration)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    source = tmp_path / "source"
    policy = ManifestsPolicy(
        name="shop",
        url=f"file://{source}",
        cluster="main",
        push="env:PUSH",
        bucket="vault",
        recipients=(CUSTODIAN_KEY,),
        signing_key="env:KEY",
        trusted_signers=(KEY_SIGNER,),
    )
    if request.param == "fake":
        return World(MemoryGit(), source, policy)
    source.mkdir()
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(source)], check=True)
    # A host has no work tree; with one, the branch that is checked out takes a push only by this.
    subprocess.run(["git", "-C", str(source), "config", "receive.denyCurrentBranch", "updateInstead"], check=True)
    return World(GitBranches(tmp_path / "mirrors", MemorySecrets({"env:PUSH": "a token"})), source, policy)


async def test_the_head_comes_with_its_history_and_files(world: World) -> None:
    first = world.push({"production/app.yaml": "a: 1\n", "README.md": "hello"})
    second = world.push({"production/app.yaml": "a: 2\n"})

    assert await world.port.fetch(world.policy) == second

    assert await world.port.has("shop", first)
    assert await world.port.contains("shop", second, first)
    assert not await world.port.contains("shop", first, second)
    [file] = await world.port.files("shop", second, "production")
    assert (file.path, file.body) == ("production/app.yaml", b"a: 2\n")


async def test_a_commit_that_was_pushed_over_is_kept(world: World) -> None:
    old = world.push({"app.yaml": "a: 1\n"})
    await world.port.fetch(world.policy)
    new = world.push({"app.yaml": "a: 2\n"}, fresh=True)

    assert await world.port.fetch(world.policy) == new

    assert not await world.port.contains("shop", new, old)
    assert await world.port.has("shop", old)
    assert [file.body for file in await world.port.files("shop", old, "")] == [b"a: 1\n"]


async def test_a_branch_that_is_gone_is_told_and_its_commits_are_kept(world: World) -> None:
    head = world.push({"app.yaml": "a: 1\n"})
    await world.port.fetch(world.policy)
    world.drop("main")

    assert await world.port.fetch(world.policy) is None

    assert await world.port.has("shop", head)


async def test_a_commit_of_any_branch_changes_what_the_refs_say_and_nothing_else_does(world: World) -> None:
    world.push({"app.yaml": "a: 1\n"})
    await world.port.fetch(world.policy)
    before = await world.port.refs("shop")
    await world.port.fetch(world.policy)
    assert await world.port.refs("shop") == before

    world.branch("next", {"app.yaml": "a: 2\n"})
    await world.port.fetch(world.policy)

    assert await world.port.refs("shop") != before


# ---------------------------------------------------------------- a commit on top


FOLDER = {"production/app.yaml": "a: 1\n", "production/deep/more.yaml": "b: 1\n", "README.md": "then"}


async def went_on(world: World) -> tuple[str, str]:
    """A commit, and the head after it: one file of the folder is gone, one has changed, and so has one outside."""
    then = world.push(FOLDER)
    if isinstance(world.port, MemoryGit):
        head = world.push({"production/app.yaml": "a: 2\n", "README.md": "now"})
    else:
        world.git("rm", "--quiet", "production/deep/more.yaml")
        head = world.push({"production/app.yaml": "a: 2\n", "README.md": "now"})
    await world.port.fetch(world.policy)
    return then, head


@pytest.mark.parametrize(("path", "outside"), [("", "then"), ("production", "now"), ("/production/", "now")])
async def test_a_folder_goes_back_and_what_is_outside_of_it_stays(world: World, path: str, outside: str) -> None:
    then, head = await went_on(world)
    policy = world.policy.model_copy(update={"path": path})

    tree = await world.port.tree(policy, then, onto=head)
    made = await world.port.commit("shop", tree=tree, parent=head, subject="Go back", mark="plan-1")

    assert await world.port.root("shop", made) == tree
    assert await world.port.folder(policy, made) == await world.port.folder(policy, then)
    assert await world.port.changed("shop", head, tree) == (2 if path else 3)
    files = {file.path: file.body for file in await world.port.files("shop", made, "production")}
    assert files == {"production/app.yaml": b"a: 1\n", "production/deep/more.yaml": b"b: 1\n"}
    assert await world.port.move(policy, made, over=head)
    if not isinstance(world.port, MemoryGit):
        assert world.git("show", "main:README.md") == outside


async def test_a_deeper_folder_goes_back_alone(world: World) -> None:
    then, head = await went_on(world)
    policy = world.policy.model_copy(update={"path": "production/deep"})

    tree = await world.port.tree(policy, then, onto=head)
    made = await world.port.commit("shop", tree=tree, parent=head, subject="Go back", mark="plan-1")

    files = {file.path: file.body for file in await world.port.files("shop", made, "production")}
    assert files == {"production/app.yaml": b"a: 2\n", "production/deep/more.yaml": b"b: 1\n"}
    assert await world.port.folder(policy, head) is None
    with pytest.raises(UserError, match="has no folder"):
        await world.port.tree(policy, head, onto=then)


async def test_the_branch_moves_by_one_commit_that_is_found_by_its_mark(world: World) -> None:
    then, head = await went_on(world)
    await world.port.may_push(world.policy, head)
    assert world.head == head

    tree = await world.port.tree(world.policy, then, onto=head)
    made = await world.port.commit("shop", tree=tree, parent=head, subject="Go back", mark="plan-1")

    assert world.head == head
    assert await world.port.move(world.policy, made, over=head)
    assert world.head == made
    assert await world.port.fetch(world.policy) == made
    assert await world.port.contains("shop", made, head)
    later = world.push({"production/app.yaml": "a: 3\n"})
    await world.port.fetch(world.policy)
    assert await world.port.later("shop", later, head) == [(later, ""), (made, "plan-1")]
    assert await world.port.later("shop", head, head) == []


async def test_a_branch_that_has_moved_is_left_alone(world: World) -> None:
    then, head = await went_on(world)
    tree = await world.port.tree(world.policy, then, onto=head)
    made = await world.port.commit("shop", tree=tree, parent=head, subject="Go back", mark="plan-1")
    theirs = world.push({"production/app.yaml": "a: 3\n"})

    assert not await world.port.move(world.policy, made, over=head)
    assert world.head == theirs


async def test_a_branch_that_was_set_back_is_not_moved_over_what_it_left(world: World) -> None:
    then, head = await went_on(world)
    tree = await world.port.tree(world.policy, then, onto=head)
    made = await world.port.commit("shop", tree=tree, parent=head, subject="Go back", mark="plan-1")
    if isinstance(world.port, MemoryGit):
        world.port.branches["main"] = then
    else:
        world.git("reset", "--quiet", "--hard", then)

    assert not await world.port.move(world.policy, made, over=head)
    assert world.head == then


# ---------------------------------------------------------------- the program alone


@pytest.fixture
def real(world: World) -> World:
    if isinstance(world.port, MemoryGit):
        pytest.skip("the fake writes no bundle that git reads")
    return world


async def test_a_bundle_alone_gives_the_repository_back_with_what_was_pushed_over(real: World, tmp_path: Path) -> None:
    old = real.push({"app.yaml": "a: 1\n"})
    await real.port.fetch(real.policy)
    new = real.push({"app.yaml": "a: 2\n"}, fresh=True)
    await real.port.fetch(real.policy)

    await real.port.bundle(real.policy, new, tmp_path / "mirror.bundle")

    await asyncio.to_thread(subprocess.run, ["rm", "-rf", str(real.source), str(tmp_path / "mirrors")], check=True)
    back = tmp_path / "back.git"
    argv = ["git", "clone", "--quiet", "--mirror", str(tmp_path / "mirror.bundle"), str(back)]
    await asyncio.to_thread(subprocess.run, argv, check=True)
    for commit, text in ((old, "a: 1\n"), (new, "a: 2\n")):
        argv = ["git", "-C", str(back), "show", f"{commit}:app.yaml"]
        shown = await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True, text=True)
        assert shown.stdout == text


async def test_a_tag_changes_what_the_refs_say(real: World) -> None:
    real.push({"app.yaml": "a: 1\n"})
    await real.port.fetch(real.policy)
    before = await real.port.refs("shop")
    real.git("tag", "v1")
    await real.port.fetch(real.policy)

    assert await real.port.refs("shop") != before


async def test_a_bundle_is_whole_where_the_branch_of_the_plan_is_gone(real: World, tmp_path: Path) -> None:
    head = real.push({"app.yaml": "a: 1\n"})
    await real.port.fetch(real.policy)
    other = real.branch("next", {"app.yaml": "a: 2\n"})
    real.drop("main")
    await real.port.fetch(real.policy)

    await real.port.bundle(real.policy, head, tmp_path / "mirror.bundle")

    back = tmp_path / "back.git"
    argv = ["git", "clone", "--quiet", "--mirror", str(tmp_path / "mirror.bundle"), str(back)]
    await asyncio.to_thread(subprocess.run, argv, check=True)
    for commit in (head, other):
        await asyncio.to_thread(subprocess.run, ["git", "-C", str(back), "cat-file", "-e", commit], check=True)


async def test_a_commit_that_the_repository_has_lost_is_kept_out_of_a_bundle(real: World, tmp_path: Path) -> None:
    old = real.push({"app.yaml": "a: 1\n"})
    await real.port.fetch(real.policy)
    await real.port.bundle(real.policy, old, tmp_path / "mirror.bundle")
    new = real.push({"app.yaml": "a: 2\n"}, fresh=True)
    anew = GitBranches(tmp_path / "anew", MemorySecrets({}))
    await anew.fetch(real.policy)
    assert not await anew.has("shop", old)
    before = await anew.refs("shop")

    assert not await anew.take("shop", tmp_path / "mirror.bundle", "1" * 40)
    assert await anew.refs("shop") == before
    assert await anew.take("shop", tmp_path / "mirror.bundle", old)

    assert [file.body for file in await anew.files("shop", old, "")] == [b"a: 1\n"]
    assert await anew.refs("shop") != before  # the next bundle has it
    assert await anew.fetch(real.policy) == new
    await anew.bundle(real.policy, old, tmp_path / "next.bundle")


async def test_a_rule_of_the_repository_is_told_and_nothing_is_moved(real: World) -> None:
    then, head = await went_on(real)
    hook = real.source / ".git" / "hooks" / "update"
    hook.write_text("#!/bin/sh\necho 'main is protected' >&2\nexit 1\n")
    hook.chmod(0o755)
    made = await real.port.commit("shop", tree=await real.port.root("shop", then), parent=head, subject="a", mark="b")

    with pytest.raises(UserError, match=r"takes no push to `main`: .*main is protected"):
        await real.port.move(real.policy, made, over=head)
    assert real.head == head


async def test_a_repository_that_takes_no_push_is_found_without_one(real: World) -> None:
    head = real.push({"app.yaml": "a: 1\n"})
    await real.port.fetch(real.policy)

    with pytest.raises(UserError, match="`env:PUSH` is not set"):
        await GitBranches(real.source.parent / "mirrors", MemorySecrets({})).may_push(real.policy, head)


async def test_a_bundle_without_the_commit_does_not_hold(real: World, tmp_path: Path) -> None:
    real.push({"app.yaml": "a: 1\n"})
    await real.port.fetch(real.policy)

    with pytest.raises(VerificationError, match="does not hold"):
        await real.port.bundle(real.policy, "1" * 40, tmp_path / "mirror.bundle")


async def test_nothing_of_a_repository_runs_and_links_are_not_followed(real: World, tmp_path: Path) -> None:
    real.push({"app.yaml": "a: 1\n"})
    (real.source / "link.yaml").symlink_to("/etc/passwd")
    hook = real.source / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    head = real.push({})

    await real.port.fetch(real.policy)
    files = {file.path: file for file in await real.port.files("shop", head, "")}

    assert files["link.yaml"].body is None
    assert files["link.yaml"].problem == "is a symbolic link"
    assert not list((tmp_path / "mirrors" / "shop.git").glob("hooks/*"))


@pytest.mark.parametrize("url", ["ext::touch /tmp/ran", "ssh://nobody@127.0.0.1/x", "--upload-pack=touch"])
async def test_another_transport_is_refused(real: World, url: str) -> None:
    with pytest.raises(DrError):
        await real.port.fetch(real.policy.model_copy(update={"url": url}))


async def test_a_repository_that_is_not_there_is_told_and_no_option_passes_as_a_commit(real: World) -> None:
    with pytest.raises(UserError, match="refuses"):
        await real.port.fetch(real.policy.model_copy(update={"url": "file:///nowhere/at/all"}))
    with pytest.raises(UserError, match="is no commit"):
        await real.port.has("shop", "--all")
