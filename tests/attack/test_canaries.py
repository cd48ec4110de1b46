"""No secret leaves the processes that hold it. Row J10 of docs/reference/attacks.md.

A whole story on real servers: a dump, an incident, a refused and a signed restore, a command that fails, a token that
somebody types. Then every place that people or programs can read is searched for every secret there is.
"""

from __future__ import annotations

import json
import re
import time
from urllib.parse import quote

import pytest

from tests.e2e.canaries import TITLES
from tests.fixtures.stories import RestoredDemo

pytestmark = [pytest.mark.attack, pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.xdist_group("demo")]


def test_j10_no_secret_is_found_anywhere(restored: RestoredDemo) -> None:
    secrets, places, watch = restored.secrets, restored.places, restored.watch
    assert len(secrets) >= 10
    leaks: list[str] = []
    begun = time.monotonic()
    for place, content in [*places, *(("the terminal", line) for line in restored.process.said)]:
        leaks += [
            f"{name} in {place}" for name, value in secrets.items() if any(form in content for form in forms(value))
        ]
    assert time.monotonic() - begun < 120
    assert watch.looks > 50
    assert watch.titles == TITLES, "titles were looked at as well"
    assert watch.found == set(), "secrets on command lines or in titles"
    assert sorted(set(leaks)) == [], "\n".join(sorted(set(leaks)))
    assert any(place.endswith("bot.log") for place, _ in places)
    assert any(place.endswith("postgres.log") for place, _ in places)
    assert sum(place.startswith("table ") for place, _ in places) > 20
    statements = [content for place, content in places if place.endswith("postgres.log")]
    assert any("CREATE ROLE" in content for content in statements), "the servers have logged what they were told"
    for content in statements:
        assert re.search(r"PASSWORD\s+'(?!SCRAM-SHA-256\$)", content) is None, "a password in clear in a server's log"


def forms(value: str) -> set[str]:
    return {value, quote(value, safe=""), json.dumps(value)[1:-1]}
