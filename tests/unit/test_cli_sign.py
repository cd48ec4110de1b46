"""Taking `--sign KEY` out of the words of a request."""

from pathlib import Path

import pytest

from actions.errors import UserError
from bot.cli_sign import split

KEY = Path("k")


@pytest.mark.parametrize(
    ("words", "left", "key"),
    [
        (["restore", "shop"], ["restore", "shop"], None),
        (["restore", "shop", "--sign", "k"], ["restore", "shop"], KEY),
        (["restore", "--sign=k", "shop", "--reason", "x"], ["restore", "shop", "--reason", "x"], KEY),
    ],
)
def test_the_key_is_taken_out(words: list[str], left: list[str], key: Path | None) -> None:
    assert split(words) == (left, key)


def test_a_missing_key_is_told() -> None:
    with pytest.raises(UserError, match="needs your key"):
        split(["restore", "shop", "--sign"])
