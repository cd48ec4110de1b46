"""Words become commands, or one sentence with one example."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actions.errors import UserError
from bot.router import BREAK_GLASS, HUB, SLASHES, TABLE, Command, CommandKind, Router
from bot.words import tokens

router = Router()


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_every_example_of_the_table_means_its_own_row(entry) -> None:  # type: ignore[no-untyped-def]
    slash, _, text = entry.example.partition(" ")
    assert slash in SLASHES
    command = router.parse_slash("/" + slash, text)
    assert (BREAK_GLASS if command.break_glass else command.name) == entry.name


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_the_hub_knows_every_row(entry) -> None:  # type: ignore[no-untyped-def]
    slash, _, text = entry.example.partition(" ")
    noun = slash.removeprefix(HUB).removeprefix("-")
    assert router.parse_slash("/dr", f"{noun} {text}") == router.parse_slash("/" + slash, text)


@pytest.mark.parametrize(
    "entry",
    [entry for entry in TABLE if entry.words != (BREAK_GLASS,)],  # which takes the words of another command
    ids=lambda entry: " ".join(entry.words),
)
def test_every_option_of_the_usage_is_understood(entry) -> None:  # type: ignore[no-untyped-def]
    offered = set(re.findall(r"--([a-z][a-z0-9-]*)", entry.usage))
    assert offered <= set(entry.options)


def test_names_are_unique_and_signing_options_belong_to_plans() -> None:
    assert len({entry.name for entry in TABLE}) == len(TABLE)
    for entry in TABLE:
        assert ("reason" in entry.options) == (entry.kind in (CommandKind.PLAN, CommandKind.ORDER))
        assert ("target" in entry.options) == (entry.kind is CommandKind.PLAN)


@pytest.mark.parametrize(
    "text",
    [
        'superprismora --from b-17 --reason "table is gone" --target superprismora',
        "superprismora —from b-17 —reason “table is gone” —target superprismora",
        "superprismora –from b-17 –reason „table is gone“ –target superprismora",
        "--target=superprismora --reason='table is gone' --from=b-17 superprismora",
        "superprismora\u00a0--from\u00a0b-17 --reason ‘table is gone’ --target “superprismora”",
    ],
)
def test_what_phones_make_of_quotes_and_dashes_is_undone(text: str) -> None:
    assert router.parse_slash("/dr-restore", text) == Command(
        name="restore.dump",
        params={"database": "superprismora", "backup": "b-17", "before": None, "instance_suspect": False},
        reason="table is gone",
        typed="superprismora",
    )


@pytest.mark.parametrize("option", ["--suspect", "—suspect", "--instance-suspect"])
def test_a_suspect_server_can_be_named(option: str) -> None:
    command = router.parse_slash("/dr-restore", f"superprismora {option} --reason disk --target superprismora")
    assert (command.params["instance_suspect"], command.reason) == (True, "disk")


def test_apostrophes_and_dashes_stay_in_a_sentence() -> None:
    command = router.parse_slash("/dr-incident", "note it’s the vendor’s disk — they don't know why, —really")
    assert command.params["text"] == "it’s the vendor’s disk — they don't know why, —really"


def test_slack_marks_become_ids_in_parameters_and_names_in_sentences() -> None:
    command = router.parse_slash(
        "/dr-incident", "open <@U1|ana> sees 5 &lt; 6 &amp; 7 --channel <#C9|ops room> --severity 2"
    )
    assert command.params["title"] == "@ana sees 5 < 6 & 7"
    assert command.params["channel"] == "C9"
    assert command.params["severity"] == "SEV2"


def test_links_are_bare() -> None:
    command = router.parse_slash("/dr-backup", "adopt db <https://h/x?a=1&amp;b=2|x>")
    assert command.params == {"database": "db", "source_key": "https://h/x?a=1&b=2"}


def test_names_with_quotes_and_unicode_arrive_whole() -> None:
    command = router.parse_slash("/dr-backup", 'run "Käse \\"x\\" \'y\'"')
    assert command.params == {"database": "Käse \"x\" 'y'"}


@pytest.mark.parametrize(
    ("slash", "text", "words"),
    [
        ("/dr", "bakcup list", "did you mean `backup`"),
        ("/dr-backup", "lst", "did you mean `list`"),
        ("/dr-backup", "run", "`database` is missing"),
        ("/dr-backup", "run a b", "`b` is one word too many"),
        ("/dr-backup", "run a --raeson x", "did you mean `--reason`"),
        ("/dr-backup", "run a --reason", "`--reason` needs a value"),
        ("/dr", "app scale web many", "`replicas` is not right"),
        ("/dr", "app scale web 3 --service x", "`service` is given twice"),
        ("/dr-incident", "open x --severity 9", "`severity` is not right"),
        ("/dr-incident", "note", "`text` is missing"),
    ],
)
def test_wrong_words_get_one_sentence_and_one_example(slash: str, text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        router.parse_slash(slash, text)
    assert words in str(caught.value)
    assert str(caught.value).count("Example: `/dr") == 1


def test_nothing_is_help_and_a_noun_alone_is_its_help() -> None:
    assert router.parse_slash("/dr", "") == Command(name="help")
    assert router.parse_slash("/dr-backup", " ") == Command(name="help", params={"topic": "backup"})
    assert router.parse_slash("/dr-restore", "") == Command(name="restore.form")


@pytest.mark.parametrize(
    ("slash", "text", "noun"),
    [("/dr-backup", "help", "backup"), ("/dr-restore", "--help", "restore"), ("/dr", "app help", "app")],
)
def test_help_behind_a_noun_is_its_help(slash: str, text: str, noun: str) -> None:
    assert router.parse_slash(slash, text) == Command(name="help", params={"topic": noun})


def test_a_shell_has_taken_its_quotes_away() -> None:
    command = router.parse_argv(["restore", "a db", "--reason", 'it\'s "gone"', "--target", "a db"])
    assert (command.params["database"], command.reason, command.typed) == ("a db", 'it\'s "gone"', "a db")


WORDS = sorted({word for entry in TABLE for word in (*entry.words, *(f"--{name}" for name in entry.options))})
SIGNS = st.sampled_from(list("\"'“”‘’—–-=<>@#|&\\` \u00a0\u200b\u202e`7") + WORDS + ["a", "&lt;", "<@U1|x>"])


@given(
    st.sampled_from(SLASHES), st.lists(st.one_of(SIGNS, st.text(max_size=6)), max_size=14), st.sampled_from(["", " "])
)
@settings(max_examples=400)
def test_the_parser_raises_nothing_but_user_errors(slash: str, parts: list[str], glue: str) -> None:
    try:
        command = router.parse_slash("/" + slash, glue.join(parts))
    except UserError as error:
        sentence = str(error)
    else:
        assert Command.model_validate_json(command.model_dump_json()) == command
        return
    assert "Example: `/dr" in sentence


@given(st.text(max_size=60))
@settings(max_examples=300)
def test_tokens_are_never_lost_in_plain_text(text: str) -> None:
    for token in tokens(text):
        assert isinstance(token.value, str)
