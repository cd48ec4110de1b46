"""What `Branches` keep: on the program git with a repository of this machine, and on the fake."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from actions.adapters.git_branches import GitBranches
from actions.backup.manifest_branches import ManifestBranches
from actions.backup.manifest_mirrors import ManifestMirrors
from actions.commits import BranchGit, WayBack
from actions.errors import PreconditionError, TemporaryError, UserError, VerificationError
from actions.site import ManifestsPolicy, Site
from tests.fakes.buckets import MemoryBuckets
from tests.fakes.clock import MemoryClock
from tests.fakes.cluster import MemoryCluster
from tests.fakes.files import KEY_PEM, KEY_SIGNER
from tests.fakes.git import MemoryGit, MemoryLive
from tests.fakes.secrets import MemorySecrets
from tests.fakes.world import CUSTODIAN, CUSTODIAN_KEY
from tests.fixtures.git_host import READER, WRITER, git_host

SETTINGS = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}}
THEN = {"production/settings.json": json.dumps({**SETTINGS, "data": {"mode": "then"}}), "README.md": "then"}
NOW = {"production/settings.json": json.dumps({**SETTINGS, "data": {"mode": "now"}}), "README.md": "now"}


@dataclass
class World:
    git: BranchGit
    site: Site
    objects: MemoryBuckets
    secrets: MemorySecrets
    work: Path
    source: Path

    @property
    def port(self) -> ManifestBranches:
        return ManifestBranches(
            self.site, self.git, self.mirrors, objects=self.objects, secrets=self.secrets, work=self.work
        )

    @property
    def mirrors(self) -> ManifestMirrors:
        return ManifestMirrors(
            self.site,
            self.git,
            MemoryLive(),
            cluster=MemoryCluster(),
            objects=self.objects,
            secrets=self.secrets,
            clock=MemoryClock(),
            work=self.work,
        )

    def push(self, files: Mapping[str, str], *, fresh: bool = False) -> str:
        """`fresh` is a push with force that has nothing of what was there."""
        if isinstance(self.git, MemoryGit):
            return self.git.push(files, onto="" if fresh else None)
        self._git("switch", "--quiet", *(("--orphan", "fresh") if fresh else ("--detach", "main")))
        for path, text in files.items():
            place = self.source / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", "-m", "change")
        self._git("update-ref", "refs/heads/main", "HEAD")
        self._git("switch", "--quiet", "--detach")
        return self._git("rev-parse", "HEAD").strip()

    def read(self, path: str) -> str:
        """Out of the repository itself."""
        if isinstance(self.git, MemoryGit):
            return self.git.trees[self.git.branches["main"]][path].decode()
        return self._git("show", f"main:{path}")

    def lose(self) -> None:
        """The worker is another one now: its mirror is empty."""
        if isinstance(self.git, MemoryGit):
            self.git.mirrored.clear()
        else:
            shutil.rmtree(self.work.parent / "mirrors")

    def change(self, **changes: str) -> None:
        policy = self.site.manifests_of("shop").model_copy(update=changes)
        self.site = self.site.model_copy(update={"manifests": {"shop": policy}})

    def _git(self, *arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example")
        argv = ["git", *who, "-C", str(self.source), *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=["fake", pytest.param("program", marks=pytest.mark.integration)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    source = tmp_path / "source"
    policy = ManifestsPolicy(
        name="shop",
        url=f"file://{source}",
        path="production",
        cluster="main",
        namespace="shop",
        push="env:PUSH",
        bucket="vault",
        recipients=(CUSTODIAN_KEY,),
        identity="env:CUSTODIAN",
        signing_key="env:KEY",
        trusted_signers=(KEY_SIGNER,),
    )
    secrets = MemorySecrets({"env:KEY": KEY_PEM, "env:PUSH": "a token", "env:CUSTODIAN": CUSTODIAN})
    git: BranchGit = MemoryGit()
    if request.param == "program":
        subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(source)], check=True)
        commit = ["git", "-c", "user.name=a", "-c", "user.email=a@example", "-C", str(source), "commit", "--quiet"]
        subprocess.run([*commit, "--allow-empty", "-m", "first"], check=True)
        git = GitBranches(tmp_path / "mirrors", secrets)
    buckets = MemoryBuckets("vault", clock=MemoryClock())
    return World(git, Site(manifests={"shop": policy}), buckets, secrets, tmp_path / "work", source)


async def test_the_folder_goes_back_by_one_commit_and_by_another_one_again(world: World) -> None:
    then, head = world.push(THEN), world.push(NOW)

    way = await world.port.way_back("shop", then)
    assert way is not None
    assert (way.head, way.changed, way.later, way.source) == (head, 1, 1, "the repository")
    assert await world.port.carried("shop", "plan", since=head) is None
    made = await world.port.carry("shop", over=head, like=then, tree=way.tree, mark="plan", subject="Go back")

    assert await world.port.head("shop") == made
    assert json.loads(world.read("production/settings.json"))["data"] == {"mode": "then"}
    assert world.read("README.md") == "now"
    found = await world.port.carried("shop", "plan", since=head)
    assert found is not None
    assert (found.commit, found.tree, found.head) == (made, way.tree, made)
    assert await world.port.alike("shop", made, then)
    assert not await world.port.alike("shop", made, head)
    assert [each["data"] for each in (await world.port.manifests("shop", made)).objects] == [{"mode": "then"}]

    back = await world.port.carry(
        "shop", over=made, like=head, tree=way.head_tree, mark="plan put back", subject="Put back"
    )
    assert json.loads(world.read("production/settings.json"))["data"] == {"mode": "now"}
    assert (await world.port.carried("shop", "plan", since=head)) == found.model_copy(update={"head": back})


async def test_a_branch_that_says_it_already_needs_no_right_to_push(world: World) -> None:
    world.push(NOW)
    then = world.push(THEN)
    head = world.push({**THEN, "README.md": "later"})
    world.change(push="")

    way = await world.port.way_back("shop", then)

    assert way is not None
    assert (way.head, way.tree, way.changed) == (head, way.head_tree, 0)


async def test_a_commit_that_is_nowhere_is_none_of_this_repository(world: World) -> None:
    world.push(NOW)
    assert await world.port.way_back("shop", "1" * 40) is None
    assert not await world.port.alike("shop", "1" * 40, world.push(NOW))


async def test_without_a_token_nothing_is_pushed(world: World) -> None:
    then, _ = world.push(THEN), world.push(NOW)
    world.change(push="")
    with pytest.raises(UserError, match="gives `shop` no `push`"):
        await world.port.way_back("shop", then)
    world.change(push="env:NOTHING")
    with pytest.raises(UserError, match="`env:NOTHING` is not set"):
        await world.port.way_back("shop", then)


async def test_a_push_since_is_told_and_kept(world: World) -> None:
    then, head = world.push(THEN), world.push(NOW)
    way = await world.port.way_back("shop", then)
    assert way is not None
    theirs = world.push({"README.md": "theirs"})

    with pytest.raises(PreconditionError, match=f"is at `{theirs[:12]}`, not at `{head[:12]}` as planned"):
        await world.port.carry("shop", over=head, like=then, tree=way.tree, mark="plan", subject="Go back")
    assert await world.port.head("shop") == theirs


async def test_another_tree_than_the_signed_one_is_not_pushed(world: World) -> None:
    then, head = world.push(THEN), world.push(NOW)

    with pytest.raises(VerificationError, match="was signed"):
        await world.port.carry("shop", over=head, like=then, tree="2" * 40, mark="plan", subject="Go back")
    assert await world.port.head("shop") == head


async def test_what_was_pushed_over_comes_out_of_its_bundle_on_a_new_worker(world: World) -> None:
    then = world.push(THEN)
    await world.mirrors.mirror("one", "shop")
    head = world.push(NOW, fresh=True)
    await world.mirrors.mirror("two", "shop")
    assert (await world.port.way_back("shop", then) or _none()).source == "the mirror"
    world.lose()

    way = await world.port.way_back("shop", then)
    assert way is not None
    assert way.source == f"bundle `{then[:12]}`"
    world.lose()  # the run is taken over by yet another one
    made = await world.port.carry("shop", over=head, like=then, tree=way.tree, mark="plan", subject="Go back")

    assert json.loads(world.read("production/settings.json"))["data"] == {"mode": "then"}
    assert await world.port.alike("shop", made, then)


async def test_a_bundle_that_nobody_here_may_open_is_told(world: World) -> None:
    then = world.push(THEN)
    await world.mirrors.mirror("one", "shop")
    world.push(NOW, fresh=True)
    world.lose()
    world.change(identity="")

    with pytest.raises(UserError, match="its bundles are opened by custodians alone"):
        await world.port.way_back("shop", then)


@pytest.mark.corruption
async def test_a_bundle_of_other_bytes_is_not_used(world: World) -> None:
    then = world.push(THEN)
    await world.mirrors.mirror("one", "shop")
    [entry] = await world.mirrors.bundles("shop")
    world.push(NOW, fresh=True)
    world.lose()
    stored = bytearray(await world.objects.get("vault", entry.manifest.key))
    stored[-1] ^= 1
    await world.objects.put("vault", entry.manifest.key, bytes(stored))

    with pytest.raises(VerificationError, match="not as it was signed"):
        await world.port.way_back("shop", then)


async def test_a_branch_that_is_gone_is_told(world: World) -> None:
    then = world.push(THEN)
    if isinstance(world.git, MemoryGit):
        del world.git.branches["main"]
    else:
        argv = ["git", "-C", str(world.source), "update-ref", "-d", "refs/heads/main"]
        await asyncio.to_thread(subprocess.run, argv, check=True)

    with pytest.raises(UserError, match=r"Branch `main` of .* is gone"):
        await world.port.way_back("shop", then)
    assert await world.port.head("shop") is None


def _none() -> WayBack:
    raise AssertionError("nothing was found")


# ---------------------------------------------------------------- a host


@pytest.mark.integration
async def test_a_host_is_read_with_one_token_and_written_with_the_other(world: World, tmp_path: Path) -> None:
    if isinstance(world.git, MemoryGit):
        pytest.skip("the fake speaks to no host")
    world.secrets.values |= {"env:READ": READER, "env:PUSH": WRITER, "env:LATE": READER}
    with git_host(tmp_path) as host:
        then, head = host.push({"app.yaml": "a: 1\n"}), host.push({"app.yaml": "a: 2\n"})
        world.change(url=host.url, path="", password="env:READ", push="env:LATE")
        with pytest.raises(UserError, match=r"refuses: .*403"):
            await world.port.way_back("shop", then)
        world.change(push="env:PUSH")
        way = await world.port.way_back("shop", then)
        assert way is not None
        assert host.git("rev-parse", "main") == head
        made = await world.port.carry("shop", over=head, like=then, tree=way.tree, mark="plan", subject="Go back")

        assert host.git("rev-parse", "main", "main~1") == f"{made}\n{head}"
        assert host.git("show", "main:app.yaml") == "a: 1"
        tokens = {("receive-pack" in path, token) for path, token in host.asked if token}
        assert tokens == {(False, READER), (True, READER), (True, WRITER)}
        hook = host.repository / "hooks" / "pre-receive"
        hook.write_text("#!/bin/sh\necho 'main needs a review' >&2\nexit 1\n")
        hook.chmod(0o755)
        with pytest.raises(UserError, match=r"takes no push to `main`: .*needs a review") as told:
            await world.port.carry("shop", over=made, like=head, tree=way.head_tree, mark="back", subject="Back")
        assert READER not in str(told.value)
        assert WRITER not in str(told.value)
        assert host.git("rev-parse", "main") == made


@pytest.mark.integration
async def test_a_push_whose_answer_is_lost_is_found_and_not_done_again(world: World, tmp_path: Path) -> None:
    if isinstance(world.git, MemoryGit):
        pytest.skip("the fake speaks to no host")
    world.secrets.values |= {"env:READ": READER, "env:PUSH": WRITER}
    with git_host(tmp_path) as host:
        then, head = host.push({"app.yaml": "a: 1\n"}), host.push({"app.yaml": "a: 2\n"})
        world.change(url=host.url, path="", password="env:READ")
        way = await world.port.way_back("shop", then)
        assert way is not None
        host.silent = True
        with pytest.raises(TemporaryError):
            await world.port.carry("shop", over=head, like=then, tree=way.tree, mark="plan", subject="Go back")
        host.silent = False

        found = await world.port.carried("shop", "plan", since=head)
        assert found is not None
        assert (found.commit, found.tree) == (host.git("rev-parse", "main"), way.tree)
        with pytest.raises(PreconditionError):
            await world.port.carry("shop", over=head, like=then, tree=way.tree, mark="plan", subject="Go back")
        assert host.git("rev-list", "--count", f"{head}..main") == "1"
