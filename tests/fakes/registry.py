"""A registry in memory."""

from __future__ import annotations

from actions.errors import TemporaryError
from actions.images import ImageFacts, Registry


class MemoryRegistry(Registry):
    """`add` puts an image there; `down` is a registry that does not answer."""

    def __init__(self) -> None:
        self.images: dict[tuple[str, str], ImageFacts] = {}
        self.down = False

    def add(self, repository: str, digest: str, *, tag: str = "", missing: tuple[str, ...] = ()) -> None:
        facts = ImageFacts(digest=digest, bytes=1000, missing=missing)
        for reference in filter(None, (digest, tag)):
            self.images[repository, reference] = facts

    async def find(self, repository: str, reference: str) -> ImageFacts | None:
        if self.down:
            raise TemporaryError("The registry `memory` does not answer.")
        return self.images.get((repository, reference))
