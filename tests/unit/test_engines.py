"""What the product knows of an engine is declared in one file, and nobody else asks for one by its name."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import actions.engines
from actions import registry
from actions.engines import engine_of, engine_of_step, engines
from actions.errors import RefusedError
from actions.site import DEFAULT_ENGINE
from bot.plan_file import BaseBackup
from tests.fakes.physical_world import a_policy
from tests.fixtures.folder import PLACE, added

ROOT = Path(__file__).parents[2]
SIGNED = json.loads((Path(__file__).parent / "signed" / "base_steps.json").read_text())
"""Steps as plans hold them that were signed before steps named their engine, with what they showed."""


# ---------------------------------------------------------------- plans that were signed


@pytest.mark.parametrize(("name", "text", "by_hand", "summary"), SIGNED, ids=[step[0] for step in SIGNED])
def test_a_step_that_was_signed_reads_and_hashes_as_before(
    name: str, text: str, by_hand: list[str], summary: str
) -> None:
    steps = registry.kinds().steps
    step = next(kind for kind in steps.values() if kind.__name__ == name).model_validate_json(text)
    assert step.model_dump_json() == text
    assert list(step.by_hand()) == by_hand
    assert step.summary == summary


def test_a_step_of_an_engine_that_is_gone_is_still_shown() -> None:
    text = next(text for name, text, *_ in SIGNED if name == "MakeBase").replace('"native"', '"tape"')
    step = registry.kinds().steps["make_base"].model_validate_json(text)
    assert step.by_hand() == ("# take a base backup of main with engine tape, which this version does not know",)


# ---------------------------------------------------------------- nobody asks by name


def test_nobody_asks_for_an_engine_by_its_name() -> None:
    asked = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in _sources()
        for line in _named_in(ast.parse(path.read_text(encoding="utf-8")), _own(path))
    ]
    assert asked == []


def test_who_asks_by_name_is_found() -> None:
    asking = 'if policy.engine == "native":\n    pass\nfrom actions.backup.pgbackrest import PgBackRestEngine\n'
    assert set(_named_in(ast.parse(asking), "")) == {1, 3}
    assert list(_named_in(ast.parse(asking), "pgbackrest")) == [1]


def _sources() -> Iterator[Path]:
    for package in ("actions", "bot", "storage"):
        yield from sorted((ROOT / package).rglob("*.py"))


def _own(path: Path) -> str:
    """The engine whose file this is."""
    inside = path.parent.name in ("engines", "backup", "adapters")
    return next((name for name in engines() if inside and path.stem.split("_")[0] == name), "")


def _named_in(tree: ast.Module, own: str) -> Iterator[int]:
    names = set(engines()) - {own}
    makers = {f"{package}.{name}" for name in names for package in ("actions.backup", "actions.adapters")}
    allowed = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign) and _is_default(node)}
    for node in ast.walk(tree):
        if (isinstance(node, ast.Constant) and node.value in names and id(node) not in allowed) or (
            isinstance(node, ast.ImportFrom) and node.module in makers
        ):
            yield node.lineno


def _is_default(node: ast.Assign) -> bool:
    return [target.id for target in node.targets if isinstance(target, ast.Name)] == ["DEFAULT_ENGINE"]


# ---------------------------------------------------------------- the registry


def test_the_default_is_an_engine() -> None:
    assert DEFAULT_ENGINE in engines()
    assert engine_of(a_policy()).name == DEFAULT_ENGINE


def test_an_unknown_engine_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RefusedError, match=r"There is no engine `tape` for server `primary`\. Use one of `native`"):
        engine_of(a_policy().model_copy(update={"engine": "tape"}))
    assert engine_of_step("tape", "").name == "tape"


def test_a_further_engine_is_one_file() -> None:
    before = set(engines())
    with added() as engine:
        assert set(engines()) == {*before, engine.name}
        assert engine_of(a_policy().model_copy(update={"engine": engine.name})) is engine
    assert set(engines()) == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("from actions.engines.pgbackrest import ENGINE", "does not declare an engine of its own name"),
        ((PLACE / "folder.py").read_text().replace("    folder: Text", "    stanza: Text"), "have the keys stanza"),
    ],
)
def test_a_file_that_declares_no_engine_of_its_own_is_no_engine(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "folder.py").write_text(text)
    with pytest.raises(TypeError, match=why), added(tmp_path):
        pass
    assert str(tmp_path) not in actions.engines.__path__


def test_keys_of_engines_stand_in_the_plan_file() -> None:
    for engine in engines().values():
        for name, field in engine.keys.model_fields.items():
            assert not field.is_required(), f"`{name}` of {engine.name} would be asked of all other engines"
            assert name in BaseBackup.model_fields


# ---------------------------------------------------------------- a third one, from the plan file on

CHECK = f"""
import sys
import actions.engines
actions.engines.__path__.append({str(PLACE)!r})
from bot.cli import main
sys.argv = ["drbot", "plan", "check", *sys.argv[1:]]
main()
"""
WORLD = f"""
import asyncio, sys
import actions.engines
actions.engines.__path__.append({str(PLACE)!r})
from pathlib import Path
from actions.adapters.clock import SystemClock
from actions.adapters.secrets import SecretReferences
from bot import world
from bot.plan_file import load
from bot.settings import Settings
from bot.site import site_of
plan, settings = load(sys.argv[1]), Settings(data_directory=Path(sys.argv[2]))
class Any(dict):
    def get(self, name, default=None): return "value"
    def __getitem__(self, name): return "value"
    def __contains__(self, name): return True
secrets = SecretReferences(Any())
site = asyncio.run(site_of(plan, secrets))
engines = world._physical(settings, site, None, None, secrets, SystemClock())
print(type(engines._of("primary")).__name__, *asyncio.run(engines.lacks("primary")))
"""


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def _plan_with(tmp_path: Path, *changes: tuple[str, str]) -> str:
    text = (ROOT / "dr-plan.yml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "dr-plan.yml"
    path.write_text(text, encoding="utf-8")
    return str(path)


SERVER_ARCHIVES = [
    ("        open_store: superprismora-wal-open ", "        #"),
    ("        slot: drbot_wal\n", ""),
    ("        synchronous: false ", "        #"),
]
IN_A_FOLDER = ("engine: native ", "engine: folder\n        folder: /srv/copies\n        #")


def test_the_plan_file_takes_a_further_engine_with_its_own_key(tmp_path: Path) -> None:
    done = _run(CHECK, _plan_with(tmp_path, IN_A_FOLDER, *SERVER_ARCHIVES))
    assert "error" not in done.stdout + done.stderr
    assert done.returncode == 0
    done = _run(CHECK, _plan_with(tmp_path, IN_A_FOLDER))
    assert "`slot` is of `drbot wal`; the folder engine archives by the server's `archive_command`" in done.stdout
    done = _run(CHECK, _plan_with(tmp_path, ("engine: native ", "folder: /srv/copies\n        #")))
    assert "`folder` is of the folder engine; set `engine: folder`, or remove it" in done.stdout
    assert done.returncode != 0


def test_without_its_file_the_plan_file_refuses_it(tmp_path: Path) -> None:
    from bot.plan_file import check

    said = [str(problem) for problem in check(_plan_with(tmp_path, IN_A_FOLDER))]
    assert any("use `native` or `pgbackrest`" in line for line in said)
    assert any("there is no key `folder` here" in line for line in said)


def test_it_is_made_as_every_other_one(tmp_path: Path) -> None:
    done = _run(WORLD, _plan_with(tmp_path, IN_A_FOLDER, *SERVER_ARCHIVES), str(tmp_path))
    assert "FolderBackups what='the folder `/srv/copies/wal` is not there'" in done.stdout, done.stderr
