"""What counts as downtime, and what a second terminal says when no demo runs."""

from pathlib import Path

import pytest
from aiohttp import web

from actions.errors import UserError
from bot.demo import running
from bot.demo.sweeper import PREFIX
from bot.demo.watch import DAMAGED_TEXT, Answer, HealthWatch


def watched(*seen: tuple[float, Answer]) -> float | None:
    watch = HealthWatch("http://127.0.0.1:1/")
    watch.seen = list(seen)
    return watch.downtime()


def test_damage_is_not_downtime_of_the_restore() -> None:
    story = [(0.0, Answer.GOOD), (1.0, Answer.DAMAGED), (9.0, Answer.AWAY), (12.5, Answer.GOOD)]
    assert watched(*story) == 3.5


def test_coming_back_with_damage_is_still_downtime() -> None:
    assert watched((0.0, Answer.AWAY), (1.0, Answer.DAMAGED), (4.0, Answer.GOOD)) == 4.0


def test_never_away_and_never_back_have_no_downtime() -> None:
    assert watched((0.0, Answer.GOOD), (1.0, Answer.DAMAGED)) is None
    assert watched((0.0, Answer.GOOD), (1.0, Answer.AWAY)) is None


async def test_answers_are_told_apart() -> None:
    answer = web.Response
    said: list[web.Response] = [answer(), answer(status=503, text=f"{DAMAGED_TEXT}: x"), answer(status=503, text="?")]

    async def health(_: web.Request) -> web.Response:
        return said.pop(0) if said else web.Response()

    app = web.Application()
    app.router.add_get("/", health)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with HealthWatch(f"http://{host}:{port}/") as watch:
            await watch.until(Answer.AWAY, within=30)
            await watch.until(Answer.GOOD, within=30)
        assert [kind for _, kind in watch.seen] == [Answer.GOOD, Answer.DAMAGED, Answer.AWAY, Answer.GOOD]
        assert watch.downtime() is not None
    finally:
        await runner.cleanup()


async def test_nobody_there_counts_as_away() -> None:
    async with HealthWatch("http://127.0.0.1:9/") as watch:
        await watch.until(Answer.AWAY, within=30)


def test_no_demo_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make demo"):
        running.find(tmp_path / f"{PREFIX}none")


def test_state_of_a_dead_demo_is_not_a_running_one(tmp_path: Path) -> None:
    (tmp_path / running.STATE).write_text('{"directory": "/nowhere"}')
    with pytest.raises(UserError, match="No demo runs"):
        running.find(tmp_path)
