"""YAML read with the place of every key, and without YAML's surprises.

Refused: tabs, keys given twice, anchors and aliases (what people sign must be
readable where it stands), tags, several documents in one file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from bot.plan_file.rules import Path


@dataclass(frozen=True)
class Place:
    """A place in a file; line and column count from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class SyntaxProblem:
    """Something the YAML reader or this module refuses."""

    place: Place
    path: Path
    wrong: str
    right: str


@dataclass
class Source:
    """A file's data, and where each key and value stands."""

    data: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    problems: list[SyntaxProblem] = field(default_factory=list)

    def place(self, path: Path, *, of_key: bool = False) -> Place:
        """Where a path stands; for a path the file lacks, where its nearest parent stands."""
        if of_key and path in self.keys:
            return self.keys[path]
        for length in range(len(path), 0, -1):
            known = self.values.get(path[:length]) or self.keys.get(path[:length])
            if known is not None:
                return known if length == len(path) else self.keys.get(path[:length], known)
        return Place(1, 1)


def read(text: str) -> Source:
    """Read a plan's text. Problems are collected; `data` is None when nothing could be read."""
    source = Source()
    try:
        root = YAML(typ="safe", pure=True).compose(StringIO(text))
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        source.problems.append(
            SyntaxProblem(Place(line, 1), (), "a character YAML does not allow", "remove the control character")
        )
        return source
    except MarkedYAMLError as error:
        source.problems.append(_syntax_problem(error, text))
        return source
    except RecursionError:
        return Source(problems=[SyntaxProblem(Place(1, 1), (), "the file is nested too deeply", "close the brackets")])
    if root is None:
        source.problems.append(SyntaxProblem(Place(1, 1), (), "the file is empty", "start with `version: 1`"))
        return source
    source.data = _value(root, (), source, set())
    source.problems.sort(key=lambda problem: (problem.place.line, problem.place.column))
    return source


def _syntax_problem(error: MarkedYAMLError, text: str) -> SyntaxProblem:
    mark = error.problem_mark or error.context_mark
    place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
    lines = text.splitlines()
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or line[place.column - 1 : place.column] == "\t":
        return SyntaxProblem(place, (), "a tab is used for indentation", "use spaces, two for each level")
    what = error.problem or error.context or "this is not YAML"
    if "single document" in f"{error.context} {error.problem}":
        return SyntaxProblem(place, (), "the file holds several documents", "keep one plan, without `---` between")
    if "alias" in what:
        return SyntaxProblem(place, (), "an alias (`*name`) is not allowed", "write the value out where it is used")
    # The reader's own sentence tells what it met; the quoted text of the line is left out,
    # since it may hold a secret typed in by mistake.
    return SyntaxProblem(
        place, (), f"not readable as YAML: {what}", "compare the indentation and quotes with the line above"
    )


def _value(node: Node, path: Path, source: Source, seen: set[int]) -> Any:
    source.values[path] = place = _place(node)
    if id(node) in seen:
        source.problems.append(
            SyntaxProblem(place, path, "an alias (`*name`) is not allowed", "write the value out where it is used")
        )
        return None
    seen.add(id(node))
    if isinstance(node, MappingNode):
        return dict(_entries(node, path, source, seen))
    if isinstance(node, SequenceNode):
        return [_value(item, (*path, index), source, seen) for index, item in enumerate(node.value)]
    return _scalar(node, path, source)


def _entries(node: MappingNode, path: Path, source: Source, seen: set[int]) -> Iterator[tuple[str, Any]]:
    first: dict[str, Place] = {}
    for key_node, value_node in node.value:
        place = _place(key_node)
        if not isinstance(key_node, ScalarNode):
            source.problems.append(SyntaxProblem(place, path, "a key must be plain text", "write `key: value`"))
            continue
        key = str(key_node.value)
        if key in first:
            source.problems.append(
                SyntaxProblem(
                    place,
                    (*path, key),
                    f"the key `{key}` is given twice",
                    f"keep one; the first is in line {first[key].line}",
                )
            )
            continue
        first[key] = place
        source.keys[(*path, key)] = place
        yield key, _value(value_node, (*path, key), source, seen)
        if isinstance(value_node, ScalarNode) and not value_node.value:
            # The reader places a value that is left out at whatever follows it.
            source.values[(*path, key)] = place


def _place(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _scalar(node: Node, path: Path, source: Source) -> Any:
    """The value of a scalar by YAML's core schema; dates stay text for the models to read."""
    text = str(node.value)
    match str(node.tag).removeprefix("tag:yaml.org,2002:"):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" | "float" as kind:
            return _number(text, kind)
        case "str" | "timestamp":
            return text
        case tag:
            source.problems.append(
                SyntaxProblem(_place(node), path, f"the tag `{tag}` is not allowed", "write the plain value")
            )
            return None


def _number(text: str, kind: str) -> int | float | str:
    try:
        return int(text.replace("_", ""), 0) if kind == "int" else float(text.replace("_", ""))
    except ValueError:
        # Leading zeros, `.inf` and the like: no key of the plan wants them, so the models refuse the text.
        return text
