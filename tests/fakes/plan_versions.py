"""Versions of a plan file in memory. A document is a text of `key: value` lines."""

from __future__ import annotations

import hashlib

from actions.errors import UserError
from actions.ports import PlanFileChange, PlanVersions


class MemoryPlanVersions(PlanVersions):
    """`versions` holds every version that was activated, with the plan that did it; the last one is in force."""

    def __init__(self, first: str = "name: shop\n") -> None:
        self.versions: list[tuple[str, str]] = [(first, "")]

    async def active(self) -> str:
        return sha256_of(self.versions[-1][0])

    async def compare(self, document: str) -> PlanFileChange:
        now = self.versions[-1][0]
        if "name:" not in document:
            raise UserError("the new plan file: `name` is missing")
        if document == now:
            raise UserError("This is the plan in force already; nothing is to be done.")
        lines = sorted(set(document.splitlines()) ^ set(now.splitlines()))
        return PlanFileChange(
            sha256=sha256_of(document), name="shop", before=sha256_of(now), changes=tuple(lines) or ("layout",)
        )

    async def activate(self, document: str, *, plan: str) -> None:
        if self.versions[-1][0] != document:
            self.versions.append((document, plan))


def sha256_of(document: str) -> str:
    return hashlib.sha256(document.encode()).hexdigest()
