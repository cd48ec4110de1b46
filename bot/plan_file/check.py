"""Checking a plan file: every problem with its line, what is wrong and what would be right."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from actions.contract import DrillOf
from actions.errors import UserError
from bot.plan_file.document import RULES_ERROR, DrPlan
from bot.plan_file.doubts import doubts
from bot.plan_file.rules import Broken, Path, broken_rules, choose, find, new_rules
from bot.plan_file.sentences import model_at, sentence
from bot.plan_file.source import Place, read

_LARGEST = 1_000_000
"""Bytes; a plan people can read is a hundredth of it."""


class Severity(StrEnum):
    """Whether a problem stops the start."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Problem:
    """One finding in a plan file. Its text never holds a value that may be secret."""

    file: str
    line: int
    column: int
    key: str
    """Dotted path such as `databases[0].server`; empty for the file as a whole."""
    wrong: str
    right: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.file}:{self.line}:{self.column}: {self.severity}: {key}{self.wrong}; {self.right}"


Names = Mapping[str, DrillOf | None]
"""The names of the registry, and which of them a drill may be (`actions.registry.names`)."""

Rules = Callable[[Mapping[str, object]], list[Broken]]
"""What must hold between the parts of a file."""


def _all_rules(data: Mapping[str, object]) -> list[Broken]:
    return [*broken_rules(data), *new_rules(data)]


def check(path: FilePath | str, *, actions: Names | None = None, today: date | None = None) -> list[Problem]:
    """Every problem of a plan file, by line; warnings only once there is no error.

    With the names of the registry, an unknown action is an error, and so is a drill
    that is none. With `today`, an overdue review is a warning.
    """
    return _examine(FilePath(path), actions=actions, today=today)[1]


def load(path: FilePath | str, *, actions: Names | None = None) -> DrPlan:
    """The plan of a file. Raises UserError with every error of it, one a line."""
    return _plan(_examine(FilePath(path), actions=actions, today=None))


def check_text(text: str, *, name: str, actions: Names | None = None) -> list[Problem]:
    """As `check`, of a text that is called `name` in the problems."""
    return _examine_text(text, FilePath(name), actions=actions, today=None)[1]


def load_text(text: str, *, name: str, actions: Names | None = None) -> DrPlan:
    """As `load`, of a text that is called `name` in the errors."""
    return _plan(_examine_text(text, FilePath(name), actions=actions, today=None))


def load_activated(text: str, *, name: str) -> DrPlan:
    """As `load_text`, of a version that was activated: rules that are newer than it do not keep it from being read."""
    return _plan(_examine_text(text, FilePath(name), actions=None, today=None, rules=broken_rules))


def read_file(path: FilePath | str) -> str:
    """The text of a plan file. Raises UserError when it cannot be read as such."""
    text = _text(FilePath(path))
    if isinstance(text, Problem):
        raise UserError(str(text))
    return text


def report(problems: Iterable[Problem]) -> str:
    """The problems as text, one a line."""
    return "\n".join(str(problem) for problem in problems)


def _plan(examined: tuple[DrPlan | None, list[Problem]]) -> DrPlan:
    plan, problems = examined
    if plan is None:
        raise UserError(report(problem for problem in problems if problem.severity is Severity.ERROR))
    return plan


def _examine(path: FilePath, *, actions: Names | None, today: date | None) -> tuple[DrPlan | None, list[Problem]]:
    text = _text(path)
    if isinstance(text, Problem):
        return None, [text]
    return _examine_text(text, path, actions=actions, today=today)


def _examine_text(
    text: str, path: FilePath, *, actions: Names | None, today: date | None, rules: Rules = _all_rules
) -> tuple[DrPlan | None, list[Problem]]:
    source = read(text)
    problems = [
        Problem(str(path), bad.place.line, bad.place.column, _dotted(bad.path), bad.wrong, bad.right)
        for bad in source.problems
    ]
    if source.data is None:
        return None, problems
    plan, invalid, unplaced = _validate(source.data)
    taken = {problem.key for problem in problems}
    for where, wrong, right, of_key in [*invalid, *_between(source.data, actions, rules)]:
        if _dotted(where) not in taken:
            problems.append(_problem(path, source.place(where, of_key=of_key), where, wrong, right))
            taken.add(_dotted(where))
    if not problems and unplaced:  # nobody may be left with a refusal that says nothing
        problems = [Problem(str(path), 1, 1, "", unplaced, "correct it")]
    if problems or plan is None:
        return None, _sorted(problems)
    warnings = [
        _problem(path, source.place(doubt.path), doubt.path, doubt.wrong, doubt.right, Severity.WARNING)
        for doubt in doubts(plan, today=today)
    ]
    return plan, _sorted(warnings)


_Misfit = tuple[Path, str, str, bool]
"""Where, what is wrong, what would be right, and whether the key rather than its value is meant."""


def _validate(data: Any) -> tuple[DrPlan | None, list[_Misfit], str]:
    """The plan, or what is wrong by its place; and the rules that the plan found broken, of which it knows no place."""
    try:
        return DrPlan.model_validate(data), [], ""
    except ValidationError as error:
        # Inputs are left out: an error of a secret must not carry the secret.
        details = error.errors(include_url=False, include_input=False)
    found: list[_Misfit] = []
    unplaced = ""
    for detail in details:
        if detail["type"] == RULES_ERROR:
            unplaced = detail["msg"]
            continue  # the same rules are run on the data below, where places are known
        where = tuple(detail["loc"])
        if detail["type"] == "too_short" and _reach(data, where):
            continue  # pydantic counts only the entries that are valid; the others are told themselves
        wrong, right = sentence(detail, _reach(data, where), model_at(DrPlan, where[:-1]))
        found.append((where, wrong, right, detail["type"] == "extra_forbidden"))
    return None, found, unplaced


def _between(data: Any, actions: Names | None, rules: Rules) -> Iterator[_Misfit]:
    if not isinstance(data, Mapping):
        return
    for rule in rules(data):
        yield rule.path, rule.wrong, rule.right, False
    if actions is None:
        return
    for pattern in (
        "scenarios.*.steps.*.action",
        "runbooks.*.steps.*.action",
        "drills.*.steps.*.action",
        "drills.*.action",
        "approval.rules.*.actions.*",
    ):
        for where, word in find(data, pattern):
            if isinstance(word, str) and word not in actions:
                yield where, f"there is no action `{word}`", choose("action", word, sorted(actions)), False
    drills = ", ".join(f"`{name}`" for name, each in sorted(actions.items()) if each is not None)
    for where, word in find(data, "drills.*.action"):
        if isinstance(word, str) and word in actions and actions[word] is None:
            wrong = f"the bot does not run `{word}` as a drill, since it may change what is in use or shows nothing"
            yield where, wrong, f"name one of {drills}, or leave `action` out and let people do the steps", False


def _reach(data: Any, where: Path) -> Any:
    for key in where:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _text(path: FilePath) -> str | Problem:
    try:
        raw = path.read_bytes()
    except OSError as error:
        # strerror, such as "No such file or directory", without Python's own dressing.
        return Problem(str(path), 1, 1, "", f"cannot be read ({error.strerror})", "give the path of a plan file")
    if len(raw) > _LARGEST:
        return Problem(str(path), 1, 1, "", f"the file has {len(raw)} bytes", f"keep it under {_LARGEST}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return Problem(str(path), line, 1, "", "the line is not UTF-8", "save the file as UTF-8")


def _problem(
    path: FilePath, place: Place, where: Path, wrong: str, right: str, severity: Severity = Severity.ERROR
) -> Problem:
    return Problem(str(path), place.line, place.column, _dotted(where), wrong, right, severity)


def _dotted(where: Path) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in where)
    return text.removeprefix(".")


def _sorted(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.line, problem.column, problem.key))
