"""What one part of a recovery point adds to the plan that brings the point back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from actions.contract import Finding, Observation, Precondition, Step, Verdict


@dataclass(frozen=True, kw_only=True)
class ManualLine:
    """What people do themselves, because the bot cannot: said before the signatures, signed, and said again after."""

    what: str
    why: str  # one sentence
    command: str

    @property
    def finding(self) -> Finding:
        return Finding(check=f"by hand: {self.what}", verdict=Verdict.WARN, detail=self.why, hint=self.command)

    @property
    def lines(self) -> tuple[str, str]:
        """For a shell: the reason as a comment."""
        return f"# {' '.join(f'{self.what}: {self.why}'.split())}", self.command


@dataclass(frozen=True, kw_only=True)
class Share:
    """Nothing of it has happened."""

    steps: tuple[Step, ...] = ()
    preconditions: tuple[Precondition, ...] = ()
    findings: tuple[Finding, ...] = ()
    observations: tuple[Observation, ...] = ()
    manual: tuple[ManualLine, ...] = ()
    takes: timedelta = timedelta()  # while the application is away


def together(shares: Iterable[Share]) -> Share:
    """All of them, in this order."""
    shares = tuple(shares)
    return Share(
        steps=tuple(step for share in shares for step in share.steps),
        preconditions=tuple(each for share in shares for each in share.preconditions),
        findings=tuple(each for share in shares for each in share.findings),
        observations=tuple(each for share in shares for each in share.observations),
        manual=tuple(line for share in shares for line in share.manual),
        takes=sum((share.takes for share in shares), timedelta()),
    )
