"""The sweeper that follows a demo."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from bot.demo.sweeper import PREFIX, belonging

pytestmark = pytest.mark.integration


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
