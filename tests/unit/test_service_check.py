"""Where the application's connection is tried, once the application was pointed elsewhere."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from actions.adapters.service_check import moved

DSN = "host=primary hostaddr=10.0.0.5 port=6432 user=shop dbname=shop sslmode=require"


@pytest.mark.parametrize(
    ("at", "host", "port"),
    [("", "primary", "6432"), ("spare:5433", "spare", "5433"), ("spare", "spare", "6432")],
)
def test_the_address_alone_is_another(at: str, host: str, port: str) -> None:
    found = conninfo_to_dict(moved(DSN, at))

    assert (found["host"], found["port"]) == (host, port)
    assert ("hostaddr" in found) is (at == "")
    assert (found["user"], found["dbname"], found["sslmode"]) == ("shop", "shop", "require")
