"""The README stays true: its table of actions is the registry, its files and make targets exist."""

import re
from pathlib import Path

from actions.registry import ACTIONS, recoveries

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_table_of_actions_is_the_registry() -> None:
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| ([A-Z]+) \|", README, flags=re.MULTILINE)
    assert rows == [(action.name, str(action.risk)) for action in ACTIONS]


def test_what_may_be_done_under_break_glass_is_the_registry() -> None:
    page = (ROOT / "docs" / "howto" / "approvals.md").read_text()
    [listed] = re.findall(r"^- for recovery alone \(([^)]+)\)", page, flags=re.MULTILINE)
    assert set(re.findall(r"`([a-z_.]+)`", listed)) == recoveries()


def test_every_link_leads_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "howto" / "demo.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets


def test_the_soak_plays_all_that_kills() -> None:
    assert re.search(r'^soak: .*\n\t.* -m "soak or kill" ', MAKEFILE, flags=re.MULTILINE)
