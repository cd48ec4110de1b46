"""No test is left out in silence: see tests/fixtures/needed.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.needed import KNOWN, REQUIRE, Needed, lacking, leave_out

ROOT = Path(__file__).resolve().parents[2]
ABSENT = {
    "here": Needed("`here`", "here-tools", lambda: True),
    "away": Needed("`away`", "away-tools", lambda: False),
}
TEST = """
import pytest

@pytest.mark.needs("absent-here")
def test_with_a_program() -> None: ...

def test_without() -> None: ...
"""
CONFTEST = """
import pytest
from tests.fixtures import needed

needed.KNOWN = {"absent-here": needed.Needed("`absent-here`", "absent-package", lambda: False)}
needed.lacking.__defaults__ = (needed.KNOWN,)

def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*names): of the system")

def pytest_runtest_setup(item):
    needed.require_marked(item)
"""


def test_what_is_not_there_is_named_with_its_package() -> None:
    assert lacking(["here", "away"], ABSENT) == "no `away`: sudo apt-get install away-tools"
    assert lacking(["here"], ABSENT) == ""


def test_left_out_where_people_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REQUIRE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no `away`"):
        leave_out("no `away`")


def test_failed_where_all_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REQUIRE, "all")
    with pytest.raises(pytest.fail.Exception, match="no `away`"):
        leave_out("no `away`")


@pytest.mark.parametrize(("required", "ends"), [("", "1 passed, 1 skipped"), ("all", "1 passed, 1 error")])
def test_a_run_without_a_program(tmp_path: Path, required: str, ends: str) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TEST)
    env = {**os.environ, REQUIRE: required, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ends in done.stdout
    assert "no `absent-here`: sudo apt-get install absent-package" in done.stdout
    assert (done.returncode == 0) is (required == "")


def test_set_up_installs_what_tests_need() -> None:
    text = (ROOT / "scripts" / "setup").read_text()
    installed = set(re.findall(r'^    "([\w.-]+) \S', text, re.MULTILINE)) | set(re.findall(r'\("([\w.-]+) ', text))
    assert {each.package for each in KNOWN.values()} <= installed


def test_ci_leaves_no_test_out() -> None:
    assert f"export {REQUIRE}=all" in (ROOT / ".ci" / "run").read_text()
