"""What is made of an API server that breaks off in the middle of its answer."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from actions.adapters.kubernetes_session import Resource, Session
from actions.errors import TemporaryError

HALF = b'{"items": [{"kind": "Secret", "data": {"key": "Y2FuYXJ5'


class HalfAnAnswer:
    """Says that all is well, and stops."""

    status = 200

    def param_serialize(self, method: str, path: str, **_: Any) -> tuple[Any, ...]:
        return method, path, {}, None, None

    def call_api(self, *_: Any, **__: Any) -> HalfAnAnswer:
        return self

    def read(self) -> bytes:
        return HALF


def test_half_an_answer_is_a_trouble_of_the_moment_and_nothing_of_it_is_told() -> None:
    session = Session("main", HalfAnAnswer())  # type: ignore[arg-type]

    with pytest.raises(TemporaryError, match="Cluster `main` answered `list secrets` with half of it") as raised:
        session.list(Resource("", "v1", "secrets"), "shop")

    assert "Y2FuYXJ5" not in "".join(traceback.format_exception(raised.value))
