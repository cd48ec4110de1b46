"""What Slack says of the roster's accounts: asked at every signature, every half minute for those whose signature waits
for the start, and every minute for all.

A worker never waits for Slack. It reads what was noted here last, so an account that is deactivated between its
signature and the start takes the signature with it; and when nothing was noted for too long it starts nothing on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from actions.approval import Code, Refusal
from actions.errors import DrError
from bot.ports import Desk
from bot.slack.gateway import LOOKUP_FAILED, SlackGateway

log = structlog.get_logger()

LOOK_EVERY_S = 60.0
FIRST_EVERY_S = 5.0
"""How often those are looked for whose signature waits: they are due as soon as Slack answers again."""
BETWEEN_S = 0.7
"""Seconds between two look-ups of the round: Slack allows some hundred a minute, and signatures need theirs."""


GROUP_LASTS_S = 30.0
"""How long the round believes what Slack said of a group: it allows some twenty such look-ups a minute for all groups
together, and signatures need theirs."""

Members = Callable[[str], Awaitable[frozenset[str]]]
"""The accounts of a group. Raises DrError when Slack does not tell."""


class Groups:
    """The groups of the round: one look-up serves all accounts, and so does one that failed."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._known: dict[str, tuple[float, frozenset[str] | DrError]] = {}

    async def members(self, group: str) -> frozenset[str]:
        """As Slack told at most `GROUP_LASTS_S` ago. Raises DrError when it did not tell."""
        now = asyncio.get_running_loop().time()
        known = self._known.get(group)
        if known is None or now - known[0] >= GROUP_LASTS_S:
            try:
                known = now, await self._members(group)
            except DrError as error:
                known = now, error
            self._known[group] = known
        told = known[1]
        if isinstance(told, DrError):
            raise told
        return told


async def look(
    gateway: SlackGateway, desk: Desk, team: str, account: str, *, members: Members | None = None
) -> Refusal | None:
    """Ask Slack now, note the answer, and return why the account may not sign. What Slack does not tell counts against
    the account, but is not noted: it says nothing on signatures that were given before. `members` tells of groups
    where that need not be asked anew."""
    members = members or gateway.group_members
    refusal = await gateway.account_problem(account, team)
    if refusal is not None and refusal.code is Code.LOOKUP_FAILED:
        return refusal
    watched = await desk.watched()
    try:
        groups = [group for group in watched.groups if account in await members(group)]
    except DrError as error:
        log.warning("group_not_readable", account=account, error=str(error))
        if refusal is not None and account in watched.accounts:
            await desk.note_account(account, problem=refusal.text, groups=[])
        return refusal or LOOKUP_FAILED
    if account in watched.accounts:
        await desk.note_account(account, problem="" if refusal is None else refusal.text, groups=groups)
    return refusal


async def watch(gateway: SlackGateway, desk: Desk, team: str) -> None:
    """Look at every account of the roster, for ever, and at those first whose signature waits."""
    clock, groups = asyncio.get_running_loop().time, Groups(gateway.group_members)
    next_round = clock()
    while True:
        try:
            watched = await desk.watched()
            whole = clock() >= next_round
            for account in dict.fromkeys((*watched.waiting, *(watched.accounts if whole else ()))):
                await look(gateway, desk, team, account, members=groups.members)
                await asyncio.sleep(BETWEEN_S)
            if whole:
                next_round = clock() + LOOK_EVERY_S
        except DrError as error:
            log.warning("accounts_not_watched", error=str(error))
        await asyncio.sleep(FIRST_EVERY_S)
