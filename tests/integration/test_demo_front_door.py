"""The demo's fixed address before pods that come and go, and the sweeper that follows a demo."""

import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import web

from bot.demo.front_door import FrontDoor, Target
from bot.demo.sweeper import PREFIX, belonging

pytestmark = pytest.mark.integration


@asynccontextmanager
async def pod(answer: str) -> AsyncIterator[Target]:
    async def say(_: web.Request) -> web.Response:
        return web.Response(text=answer)

    app = web.Application()
    app.router.add_get("/", say)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield host, port
    finally:
        await runner.cleanup()


async def read(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def test_address_stays_while_pods_come_and_go() -> None:
    ready: list[Target] = []

    async def targets() -> Sequence[Target]:
        return ready

    async with FrontDoor(targets) as door:
        assert await read(door.url) == (503, "no pod of the application is ready\n")
        async with pod("one") as one, pod("two") as two:
            ready[:] = [one, two]
            assert {await read(door.url) for _ in range(4)} == {(200, "one"), (200, "two")}
        # Both ended, but the list does not know it yet.
        assert (await read(door.url))[0] == 503
        async with pod("three") as three:
            ready[:] = [*ready, three]
            assert await read(door.url) == (200, "three")


DEMO = """
import subprocess, sys, time
folder = sys.argv[1]
subprocess.Popen([sys.executable, "-m", "bot.demo.sweeper", folder], stdin=subprocess.PIPE, start_new_session=True)
job = [sys.executable, "-c", "import time; time.sleep(60)"]
left = subprocess.Popen(job, env={"DRBOT_DATA_DIRECTORY": folder + "/var"}, start_new_session=True)
print(left.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.kill
def test_sweeper_ends_what_a_killed_demo_left_behind() -> None:
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    owner = subprocess.Popen([sys.executable, "-c", DEMO, str(directory)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    left = psutil.Process(int(owner.stdout.readline()))
    assert directory.exists()
    owner.kill()
    owner.communicate()
    limit = time.monotonic() + 20
    while directory.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert not directory.exists()
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    assert list(belonging(directory)) == []


def test_sweeper_takes_only_the_folder_of_a_demo(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bot.demo.sweeper", str(tmp_path)], input=b"", capture_output=True, check=False
    )
    assert ended.returncode == 1
    assert b"is not the folder of a demo" in ended.stderr
    assert tmp_path.exists()
