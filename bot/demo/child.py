"""The bot of the demo: `drbot run` and `drbot wal` as processes of their own, started again when they were killed."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from actions.adapters.programs import Program, run
from actions.errors import PermanentError

QUICK_END_S = 5.0
QUICK_ENDS = 3
AGAIN_AFTER_S = 1.0
GRACE = timedelta(seconds=8)


class BotProcess:
    """`async with` starts it and ends it. Whoever kills it sees another one take its work over.

    `words` are what follows `drbot`, and `name` is what people read.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        log: Path,
        say: Callable[[str], None],
        *,
        words: tuple[str, ...] = ("run",),
        name: str = "The bot",
    ) -> None:
        self._words, self._name = words, name
        # The settings of our own are no secrets; masking them would make errors hard to read.
        self._plain = {name: value for name, value in environment.items() if name.startswith("DRBOT_")}
        self._secrets = {name: value for name, value in environment.items() if name not in self._plain}
        self.log = log
        self._say = say
        self._program: Program | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._program.pid if self._program is not None else None

    async def __aenter__(self) -> Self:
        await self._launch()
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._program is not None:
            await asyncio.to_thread(self._program.stop, grace=GRACE)

    def crash(self) -> None:
        """`kill -9` of the bot. Another one is started a moment later."""
        if self._program is not None:
            self._program.send(signal.SIGKILL)

    async def failed(self) -> None:
        """Return never, or raise PermanentError with the end of the log when the bot cannot stay up."""
        if self._keeper is not None:
            await asyncio.shield(self._keeper)

    async def ask(self, *words: str, person: str, timeout: timedelta) -> str:
        """The answer of `drbot WORDS`, asked by this person of the roster. Raises ProgramError when it is a refusal."""
        command = [sys.executable, "-m", "bot.cli", *words]
        environment = {**self._plain, "DRBOT_PERSON": person}
        return (await run(command, env=environment, secrets=self._secrets, timeout=timeout)).text

    async def _launch(self) -> None:
        command = [sys.executable, "-m", "bot.cli", *self._words]
        self._program = await asyncio.to_thread(
            lambda: Program.start(command, env=self._plain, secrets=self._secrets, log=self.log)
        )

    async def _keep(self) -> None:
        clock = asyncio.get_running_loop().time
        quick, begun = 0, clock()
        while True:
            await asyncio.sleep(0.2)
            code = self._program.code() if self._program is not None else None
            if code is None or self._program is None:
                continue
            quick = quick + 1 if clock() - begun < QUICK_END_S else 1
            if quick >= QUICK_ENDS:
                said = self._program.stderr().strip()[-1500:]
                raise PermanentError(f"{self._name} does not stay up; the end of `{self.log}`:\n{said}")
            self._say(f"{self._name} has ended (code {code}) and is started again.")
            await asyncio.sleep(AGAIN_AFTER_S)
            begun = clock()
            await self._launch()
