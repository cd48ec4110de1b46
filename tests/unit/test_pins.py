"""A pin is what was signed last, whatever else lies in the bucket."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from actions.backup.pins import Pin, pin_name, pin_of
from actions.backup.signing import Signed
from tests.dump_world import Keys

AT = datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC)
KEYS = Keys()


def signed(reason: str, at: datetime, *, keys: Keys = KEYS) -> bytes:
    return Signed[Pin].sign(Pin(backup="b1", reason=reason, at=at), keys.signing).body()


def test_a_pin_counts_for_its_backup_under_its_own_name_alone() -> None:
    body, trusted = signed("case 4711", AT), (KEYS.signer,)

    found = pin_of(body, pin_name(AT), "b1", trusted)

    assert found is not None
    assert found.reason == "case 4711"
    assert pin_of(body, pin_name(AT), "b2", trusted) is None
    assert pin_of(signed("", AT, keys=Keys()), pin_name(AT), "b1", trusted) is None


def test_an_old_document_that_is_put_there_again_takes_no_pin_off() -> None:
    taken_off = signed("", AT)
    assert pin_of(taken_off, pin_name(AT + timedelta(days=1)), "b1", (KEYS.signer,)) is None
