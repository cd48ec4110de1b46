"""What every `Registry` keeps: the adapter on a stand-in that speaks the OCI distribution API, and the fake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from actions.adapters.registry import HttpRegistry
from actions.errors import PermanentError, TemporaryError, UserError
from actions.images import ImageName, Registry, mirrored
from actions.site import ImagesPolicy
from tests.fakes.registry import MemoryRegistry
from tests.fakes.secrets import MemorySecrets
from tests.fixtures.registry_server import PASSWORD, TOKEN, USER, RegistryStandIn

REPOSITORY = "mirror/team/app"


@dataclass
class World:
    port: Registry
    stand_in: RegistryStandIn | None

    def image(self, tag: str) -> tuple[str, list[str]]:
        if self.stand_in is not None:
            return self.stand_in.image(REPOSITORY, tag=tag)
        assert isinstance(self.port, MemoryRegistry)
        digest = f"sha256:{'ab' * 32}"
        self.port.add(REPOSITORY, digest, tag=tag)
        return digest, [f"sha256:{'cd' * 32}"]

    def lose(self, digest: str, blob: str) -> None:
        if self.stand_in is not None:
            self.stand_in.blobs.discard((REPOSITORY, blob))
            return
        assert isinstance(self.port, MemoryRegistry)
        self.port.add(REPOSITORY, digest, tag="1.0", missing=(blob,))


@pytest.fixture(params=["fake", pytest.param("stand-in", marks=pytest.mark.integration)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield World(MemoryRegistry(), None)
        return
    async with RegistryStandIn().serving() as stand_in:
        yield World(an_adapter(stand_in.url), stand_in)


def an_adapter(url: str, *, password: str = PASSWORD) -> HttpRegistry:
    policy = ImagesPolicy(url=url, username="env:USER", password="env:PASSWORD")
    return HttpRegistry(policy, MemorySecrets({"env:USER": USER, "env:PASSWORD": password}))


async def test_an_image_is_found_by_tag_and_by_digest(world: World) -> None:
    digest, _ = world.image("1.0")

    by_tag, by_digest = await world.port.find(REPOSITORY, "1.0"), await world.port.find(REPOSITORY, digest)

    assert by_tag is not None
    assert by_tag == by_digest
    assert (by_tag.digest, by_tag.missing) == (digest, ())
    assert await world.port.find(REPOSITORY, "2.0") is None
    assert await world.port.find("mirror/other", "1.0") is None


async def test_a_part_that_is_missing_is_told(world: World) -> None:
    digest, blobs = world.image("1.0")
    world.lose(digest, blobs[-1])

    found = await world.port.find(REPOSITORY, digest)

    assert found is not None
    assert found.missing == (blobs[-1],)


# ---------------------------------------------------------------- the adapter alone


@pytest.fixture
async def stand_in() -> AsyncIterator[RegistryStandIn]:
    async with RegistryStandIn().serving() as found:
        yield found


@pytest.mark.integration
async def test_every_platform_of_an_index_is_looked_for(stand_in: RegistryStandIn) -> None:
    amd, _ = stand_in.image(REPOSITORY, tag="amd")
    arm, blobs = stand_in.image(REPOSITORY, tag="arm")
    lost = f"sha256:{'00' * 32}"
    stand_in.index(REPOSITORY, [amd, arm, lost], tag="1.0")
    stand_in.blobs.discard((REPOSITORY, blobs[0]))

    found = await an_adapter(stand_in.url).find(REPOSITORY, "1.0")

    assert found is not None
    assert set(found.missing) == {lost, blobs[0]}


@pytest.mark.integration
async def test_other_bytes_under_a_digest_are_an_alarm(stand_in: RegistryStandIn) -> None:
    digest, _ = stand_in.image(REPOSITORY, tag="1.0")
    kind, body = stand_in.manifests[REPOSITORY, digest]
    stand_in.manifests[REPOSITORY, digest] = (kind, body.replace(b"100", b"101"))

    with pytest.raises(PermanentError, match="other bytes"):
        await an_adapter(stand_in.url).find(REPOSITORY, digest)


@pytest.mark.integration
async def test_refusals_name_the_references_and_never_the_password(stand_in: RegistryStandIn) -> None:
    stand_in.image(REPOSITORY, tag="1.0")
    with pytest.raises(UserError, match="`env:USER` and `env:PASSWORD`") as told:
        await an_adapter(stand_in.url, password="canary-wrong").find(REPOSITORY, "1.0")
    assert "canary" not in str(told.value)
    stand_in.status = 503
    with pytest.raises(TemporaryError, match="answered 503"):
        await an_adapter(stand_in.url).find(REPOSITORY, "1.0")
    with pytest.raises(TemporaryError, match="does not answer"):
        await an_adapter("http://127.0.0.1:9").find(REPOSITORY, "1.0")
    with pytest.raises(UserError, match="names no registry"):
        await HttpRegistry(None, MemorySecrets()).find(REPOSITORY, "1.0")


@pytest.mark.attack
@pytest.mark.integration
async def test_the_password_is_not_sent_over_plain_http_to_another_machine(stand_in: RegistryStandIn) -> None:
    stand_in.image(REPOSITORY, tag="1.0")
    stand_in.realm = "http://elsewhere.example/token"

    with pytest.raises(PermanentError, match="it is not sent"):
        await an_adapter(stand_in.url).find(REPOSITORY, "1.0")
    assert all("Basic" not in said and TOKEN not in said for _, said in stand_in.asked)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag"),
    [
        ("app", "", "library/app", ""),
        ("team/app:1", "", "team/app", "1"),
        ("localhost/app:1", "localhost", "app", "1"),
        ("registry.example:5000/a/b/c:v1", "registry.example:5000", "a/b/c", "v1"),
        (f"docker-pullable://registry.example/a@sha256:{'0' * 64}", "registry.example", "a", ""),
    ],
)
def test_names_are_read_as_runtimes_read_them(text: str, host: str, repository: str, tag: str) -> None:
    name = ImageName.parse(text)

    assert (name.host, name.repository, name.tag) == (host, repository, tag)
    assert bool(name.digest) == ("@" in text)


def test_the_longest_beginning_decides_where_an_image_is_kept() -> None:
    image = ImageName.parse("registry.example/team/app:1")
    mirrors = {"registry.example/": "all/", "registry.example/team/": "ours/"}

    assert mirrored(image, mirrors) == "ours/app"
    assert mirrored(image, {}) == "team/app"
    assert mirrored(image, {"elsewhere.example/": "x/"}) is None
