"""Container images: what runs, and whether the registry of the recovery region has it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol, Self

from actions.site import Frozen, ImagesPolicy

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class ImageName(Frozen):
    """`host/repository:tag@digest`, taken apart as container runtimes do."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """What names no host has an empty one, since the runtime decides which registry it means; it is of `library/`
        when it has no folder. Never raises."""
        rest, _, digest = text.removeprefix("docker-pullable://").partition("@")
        first, slash, others = rest.partition("/")
        hosted = bool(slash) and (first == "localhost" or "." in first or ":" in first)
        host, path = (first, others) if hosted else ("", rest)
        repository, _, tag = path.partition(":")
        if not hosted and "/" not in repository:
            repository = f"library/{repository}"
        return cls(host=host, repository=repository, tag=tag, digest=digest if DIGEST.fullmatch(digest) else "")

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """Without tag and digest."""
        return f"{self.host}/{self.repository}" if self.host else self.repository


class ImageFacts(Frozen):
    """An image as a registry has it."""

    digest: str
    bytes: int = 0  # of its layers, all platforms together
    missing: tuple[str, ...] = ()  # digests that its manifest names and the registry has not


class Registry(Protocol):
    """The registry of the recovery region."""

    async def find(self, repository: str, reference: str) -> ImageFacts | None:
        """The image under a tag or digest, every part of it looked for; None when there is none. Raises UserError when
        the registry refuses, TemporaryError when it does not answer."""


def kept_in(image: ImageName, policy: ImagesPolicy) -> str | None:
    """The repository of the recovery region's registry that this image is in; None where the plan names none. What
    manifests of that region take from this very registry is where they say."""
    if image.host and image.host == policy.url.partition("://")[2]:
        return image.repository
    return mirrored(image, policy.mirrors)


def mirrored(image: ImageName, mirrors: Mapping[str, str]) -> str | None:
    """The repository that the plan keeps this image in: the longest prefix of `host/repository` decides. Without any
    prefix in the plan it is the same repository; None where no prefix fits."""
    name = image.name
    if not mirrors:
        return image.repository
    fits = [prefix for prefix in mirrors if name.startswith(prefix)]
    if not fits:
        return None
    longest = max(fits, key=len)
    return mirrors[longest] + name.removeprefix(longest)
