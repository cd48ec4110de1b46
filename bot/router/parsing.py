"""From words to a command, by the table. A wrong word ends in a UserError of one sentence and one example, never in
anything else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pydantic import ValidationError
from rapidfuzz import fuzz, process

from actions.errors import UserError
from bot.router import params
from bot.router.entry import BREAK_GLASS, HUB, Command, CommandKind, Entry
from bot.router.table import TABLE
from bot.words import Token, tokens

RESTORE_FORM = "restore.form"
"""The name of the local command that opens the restore modal."""


class Router:
    """Parses by a table; `TABLE` unless a test brings its own."""

    def __init__(self, table: Sequence[Entry] = TABLE) -> None:
        self.table = tuple(table)

    def parse_slash(self, slash: str, text: str) -> Command:
        """Parse what Slack sends: `/dr-backup` and `list`. Raises UserError."""
        noun = slash.removeprefix("/").removeprefix(HUB).removeprefix("-")
        return self.parse([*tokens(noun), *tokens(text)])

    def parse_argv(self, argv: Sequence[str]) -> Command:
        """Parse the words of a shell, which has taken its quotes away already. Raises UserError."""
        return self.parse([_shell_token(word) for word in argv])

    def parse(self, words: Sequence[Token]) -> Command:
        """Raises UserError for everything it does not understand."""
        if not words:
            return Command(name="help", params={})
        if words[0].value.casefold() == BREAK_GLASS:
            return self._alone(words[1:])
        if len(words) == 2 and words[1].value.casefold() == "help" and self.entries(words[0].value.casefold()):
            return Command(name="help", params={"topic": words[0].value.casefold()})
        entry = self._entry(words)
        if entry is None:
            return self._without_verb(words)
        rest = words[len(entry.words) :]
        if entry.name == "restore.dump" and (point := self.entry("restore.point")) and _names_a_moment(rest):
            entry = point
        return _Arguments(entry, rest).command()

    def _alone(self, words: Sequence[Token]) -> Command:
        """The command behind `break-glass`."""
        command = self.parse(words)
        entry = self.entry(command.name)
        if entry is None or entry.kind is not CommandKind.PLAN or command.break_glass:
            example = next(item.example for item in self.table if item.name == BREAK_GLASS)
            what = f"`{shown(words[0].value)}` is nothing to start alone" if words else "Say what you start alone"
            raise UserError(f"{what}. Example: `/{example}`")
        return command.model_copy(update={"break_glass": True})

    def nouns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.noun for entry in self.table))

    def entries(self, noun: str) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.table if entry.noun == noun)

    def usage(self, noun: str) -> str:
        """The help of a noun for the command line."""
        return "\n".join(f"drbot {' '.join(entry.words)} {entry.usage}".rstrip() for entry in self.entries(noun))

    def entry(self, name: str) -> Entry | None:
        """The row of a command's name."""
        return next((entry for entry in self.table if entry.name == name), None)

    def _entry(self, words: Sequence[Token]) -> Entry | None:
        spoken = [word.value.casefold() for word in words[:3]]
        fits = [entry for entry in self.table if list(entry.words) == spoken[: len(entry.words)]]
        return max(fits, key=lambda entry: len(entry.words), default=None)

    def _without_verb(self, words: Sequence[Token]) -> Command:
        noun = words[0].value.casefold()
        entries = self.entries(noun)
        if entries and len(words) == 1:
            return Command(name="help", params={"topic": noun})
        if entries:
            verb = words[1].value
            verbs = [entry.words[1] for entry in entries if len(entry.words) > 1]
            near = _nearest(verb, verbs)
            example = next((entry.example for entry in entries if near in entry.words), entries[0].example)
            raise UserError(f"There is no `{shown(noun)} {shown(verb)}`{_meant(near)}. Example: `/{example}`")
        near = _nearest(noun, [*self.nouns(), *(entry.words[-1] for entry in self.table)])
        example = next((entry.example for entry in self.table if near in entry.words), "dr help")
        raise UserError(f"There is no `{shown(words[0].value)}`{_meant(near)}. Example: `/{example}`")


class _Arguments:
    """The words after a command, sorted into parameters."""

    def __init__(self, entry: Entry, words: Sequence[Token]) -> None:
        self.entry = entry
        self.words = list(words)
        self.given: dict[str, str] = {}
        self.spoken: list[str] = []

    def command(self) -> Command:
        if self.entry.name == "restore.dump" and not self.words:
            return Command(name=RESTORE_FORM)
        self._sort()
        signing = self.entry.kind in (CommandKind.PLAN, CommandKind.ORDER)
        reason = self.given.pop("reason", "") if signing else ""
        typed = self.given.pop("target", "") if signing else ""
        if self.entry.rest and self.spoken:
            self.given.setdefault(self.entry.rest, " ".join(self.spoken))
        try:
            checked = self.entry.params.model_validate(self.given)
        except ValidationError as error:
            raise self._wrong(_sentence(error)) from error
        except ValueError as error:  # int() of absurdly long digits
            raise self._wrong("A value cannot be read") from error
        return Command(name=self.entry.name, params=checked.model_dump(mode="json"), reason=reason, typed=typed)

    def _sort(self) -> None:
        free = list(self.entry.positional)
        while self.words:
            word = self.words.pop(0)
            if word.option and self._option(word):
                continue
            if free and not word.option:
                self.given[free.pop(0)] = word.value
            elif self.entry.rest:
                self.spoken.append(word.readable)
            else:
                raise self._wrong(f"`{shown(word.readable)}` is one word too many")

    def _option(self, word: Token) -> bool:
        """Take `--name value` or `--name=value`; False when it is no option but part of a sentence."""
        name, equals, value = word.value.partition("=")
        name = name.casefold().replace("_", "-")
        if name not in self.entry.options:
            if self.entry.rest and word.dashed != "--":
                return False  # a dash of a sentence
            raise self._wrong(f"There is no `--{shown(name)}`{_meant(_nearest(name, self.entry.options), '--')}")
        parameter = self.entry.aliases.get(name, name.replace("-", "_"))
        if parameter in self.given:
            raise self._wrong(f"`{shown(parameter)}` is given twice")
        if not equals and name in self.entry.flags:
            value = "yes"
        elif not equals:
            if not self.words:
                raise self._wrong(f"`--{name}` needs a value")
            following = self.words.pop(0)
            value = following.readable if name == "reason" else following.value
            if name in ("at", "before", "since"):
                value = " ".join([value, *self._rest_of_a_moment()])
        self.given[parameter] = value
        return True

    def _rest_of_a_moment(self) -> Iterator[str]:
        """`2026-02-26 10:30:00 UTC` is three words, which nobody under stress puts into quotes."""
        while self.words and re.fullmatch(r"\d{1,2}:\d{2}[\d:.]*|UTC|Z|ago|[+-]\d{2}:?\d{2}", self.words[0].value):
            yield self.words.pop(0).value

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{what}. Example: `/{self.entry.example}`")


def shown(text: str, limit: int = 60) -> str:
    """People's own words inside a code span of an answer: printable, short, unable to close the span."""
    clean = "".join(sign for sign in text if sign.isprintable()).replace("`", "'")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _names_a_moment(words: Sequence[Token]) -> bool:
    """Whether a restore is asked for by a moment rather than by a dump."""
    named = {word.value.partition("=")[0].casefold().replace("_", "-") for word in words if word.option}
    return bool(named & {name.replace("_", "-") for name in params.MOMENTS})


def _shell_token(word: str) -> Token:
    """A word of a shell is what it says: only a leading `--` has a meaning."""
    dashed = "--" if word.startswith("--") and len(word) > 2 else ""
    return Token(word[len(dashed) :], word, dashed)


def _nearest(word: str, names: Iterable[str]) -> str:
    found = process.extractOne(word, list(names), scorer=fuzz.WRatio, score_cutoff=55)
    return str(found[0]) if found else ""


def _meant(name: str, prefix: str = "") -> str:
    return f"; did you mean `{prefix}{name}`" if name else ""


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "value"
    if first["type"] == "missing":
        return f"`{name}` is missing"
    why = first["msg"].removeprefix("Value error, ")
    return f"`{name}` is not right: {shown(why[:1].lower() + why[1:], 160)}"
