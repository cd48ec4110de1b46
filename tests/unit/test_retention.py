"""Which dumps retention lets go: never the last good ones, never one whose age nobody vouches for."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from actions.ports import CatalogueEntry
from actions.steps.dump_expiry import LAST_GOOD, old_dumps
from tests.fakes.manifests import an_entry
from tests.fakes.world import START, a_site

POLICY = a_site().backups["shop"]


def dump(number: int, days: int, *, bad: bool = False) -> CatalogueEntry:
    at = START - timedelta(days=days)
    return an_entry(id=f"d{number}", snapshot_at=at, finished_at=at, problem="forged" if bad else None)


dumps = st.lists(st.tuples(st.integers(0, 90), st.booleans()), max_size=15).map(
    lambda items: [dump(number, days, bad=bad) for number, (days, bad) in enumerate(items)]
)


@given(dumps, dumps)
def test_what_goes_is_old_and_good_and_enough_stays(stored: list[CatalogueEntry], local: list[CatalogueEntry]) -> None:
    copies = [
        entry.model_copy(update={"manifest": entry.manifest.model_copy(update={"id": f"c{entry.manifest.id}"})})
        for entry in local
        if entry.problem is None
    ]
    found = old_dumps(stored, copies, POLICY, START)
    known = {entry.manifest.id: entry for entry in (*stored, *copies)}
    good = [entry for entry in stored if entry.problem is None]

    for name in found.gone:
        assert known[name].problem is None
        assert known[name].manifest.finished_at < START - POLICY.retention
    left = [entry for entry in good if entry.manifest.id not in found.gone]
    assert len(left) >= min(LAST_GOOD, len(good))
    assert not set(found.gone) & set(found.kept)
    old = {name for name, entry in known.items() if entry.manifest.finished_at < START - POLICY.retention}
    assert set(found.gone) | set(found.kept) == old


def test_the_newest_good_ones_stay_although_they_are_old() -> None:
    found = old_dumps([dump(1, 40), dump(2, 50), dump(3, 60), dump(4, 35, bad=True)], [], POLICY, START)

    assert found.gone == ("d3",)
    assert found.kept["d1"] == "one of the 2 newest that can be restored"
    assert found.kept["d4"] == "it must not be used, so nobody knows how old it is"


def test_a_pinned_dump_stays_with_its_reason() -> None:
    held = dump(3, 60).model_copy(update={"pinned": "case 4711"})
    found = old_dumps([dump(1, 1), dump(2, 2), held, dump(4, 61)], [], POLICY, START)
    assert found.gone == ("d4",)
    assert found.kept == {"d3": "pinned: case 4711"}
