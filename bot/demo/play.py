"""A story of the demo without hands: start a demo, play it, end the demo."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from actions.errors import DrError, PermanentError
from bot.demo.cast import LIMIT
from bot.demo.child import BotProcess
from bot.demo.choices import Size
from bot.demo.running import RunningDemo
from bot.demo.world import say, until_signal, world

Result = dict[str, object]
Story = Callable[[RunningDemo, BotProcess], Awaitable[Result]]


async def play(
    size: Size,
    story: Story,
    succeeded: Callable[[Result], bool],
    *,
    own_cluster: Path | None = None,
    stays: bool = False,
) -> int:
    """The exit code; the last line written is the result as JSON. A demo that `stays` is left by Ctrl-C or SIGTERM."""
    found: Result | None = None

    async def work() -> None:
        nonlocal found
        async with world(size, own_cluster=own_cluster) as demo:
            say(f"\nReady after {demo.phases.total:.0f} s. The story begins.\n")
            try:
                async with asyncio.timeout(LIMIT.total_seconds()):
                    found = await story(demo.running, demo.bot)
            except TimeoutError as error:
                raise PermanentError(f"The story has not ended within {LIMIT}; see {demo.bot.log}.") from error
            except DrError as error:
                said = demo.bot.log.read_text(errors="replace")[-1500:] if demo.bot.log.exists() else ""
                raise PermanentError(f"The story has stopped: {error}\nThe end of the bot's log:\n{said}") from error
            if stays:
                say(f"The story is over. Look around, in Slack at {demo.running.slack_url}; Ctrl-C ends the demo.")
                await demo.bot.failed()

    await until_signal(work())
    if found is None:
        return 130
    say(json.dumps(found))
    return 0 if succeeded(found) else 1
