"""What every test may use: real servers on loopback, and a check that none of them is left behind.

The process that was started as `pytest` owns the run: it makes the directory that all servers of the run live in,
starts what the workers of pytest-xdist share, and at the end looks for processes that still use the directory.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.fixtures.needed import require_marked
from tests.fixtures.notes import told
from tests.fixtures.shared_s3 import SharedS3

pytest_plugins = [
    "tests.fixtures.postgres",  # others know it, and what is imported before it is registered is not rewritten
    "tests.fixtures.away",
    "tests.fixtures.executors",
    "tests.fixtures.ledger",
    "tests.fixtures.local_slack",
    "tests.fixtures.logs",
    "tests.fixtures.memory",
    "tests.fixtures.office",
    "tests.fixtures.pgbackrest",
    "tests.fixtures.physical",
    "tests.fixtures.s3",
    "tests.fixtures.small_store",
    "tests.fixtures.ssh_keys",
    "tests.fixtures.stories",
    "tests.fixtures.wal",
    "tests.fixtures.world",
    "tests.fixtures.folder",  # knows others, which must be registered first
    "tests.fixtures.keyed",
    "tests.fixtures.backed_up",
    "tests.fixtures.ample",
]

SHARED_S3 = pytest.StashKey[SharedS3]()
RUN_DIRECTORY = "DRBOT_TEST_RUN"
PLACE = "DRBOT_TESTS_PLACE"
"""Environment variable: a folder to keep servers in instead, for what is measured on a disk."""

SHARED_MEMORY = "/dev/shm"
ENOUGH = 8 << 30
"""Bytes: a whole run holds about a quarter of it at a time."""


def pytest_configure(config: pytest.Config) -> None:
    # How long an example took says how busy the machine is. Before the tests are imported, which take it over.
    settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("unhurried")
    if not hasattr(config, "workerinput"):
        # Not under tmp_path: pytest closes that to others, and PostgreSQL, which does not run as root, is another.
        run = Path(tempfile.mkdtemp(prefix="drbot-tests-", dir=_quick_place()))
        run.chmod(0o755)
        os.environ[RUN_DIRECTORY] = str(run)
        config.stash[SHARED_S3] = SharedS3(run)


def _quick_place() -> str | None:
    """Memory, where there is enough: the tests make thousands of files, which takes a third of their time on a disk.
    None, the usual place for temporary files, otherwise and where programs may not be run from it."""
    if place := os.environ.get(PLACE):
        return place
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    ample = found.f_bavail * found.f_frsize >= ENOUGH and psutil.virtual_memory().available >= ENOUGH
    return SHARED_MEMORY if ample and not found.f_flag & os.ST_NOEXEC else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: what a test needs is not started where it is left out."""
    require_marked(item)


def pytest_collection_finish() -> None:
    """What was imported stays: walking through a million objects of it again and again took a tenth of the run."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield
    if hasattr(session.config, "workerinput"):
        return
    session.config.stash[SHARED_S3].close()
    left = leftovers(Path(os.environ[RUN_DIRECTORY]))
    if left:
        words = [f"{process.pid} {' '.join(process.cmdline())[:160]}" for process in left]
        for process in left:
            process.kill()
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        raise RuntimeError("processes were left behind by this run:\n" + "\n".join(words))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for text in told(Path(os.environ[RUN_DIRECTORY])):
        terminalreporter.write_line(text, yellow=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.stash[SHARED_S3].close()  # again: a run that fails to start has no session
        shutil.rmtree(os.environ.pop(RUN_DIRECTORY), ignore_errors=True)


def leftovers(run: Path) -> list[psutil.Process]:
    """Every live process that has the run's directory on its command line or works in it."""
    found = []
    for process in psutil.process_iter():
        try:
            inside = Path(process.cwd()).is_relative_to(run) or str(run) in " ".join(process.cmdline())
            if inside and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture(scope="session")
def run_directory() -> Path:
    """The directory of this run, open to other accounts; shared by all workers."""
    return Path(os.environ[RUN_DIRECTORY])


@pytest.fixture
def server_directory(run_directory: Path) -> Iterator[Path]:
    """A fresh directory for a server of one test, which an account without rights can enter."""
    directory = Path(tempfile.mkdtemp(dir=run_directory))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
