"""Pydantic's errors in the words of the person who wrote the file."""

from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from bot.plan_file.rules import Path, nearest
from bot.plan_file.values import MISFIT

_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a block of `key: value` lines",
    "date_type": "a date",
}


def sentence(detail: ErrorDetails, value: object, model: type[BaseModel] | None) -> tuple[str, str]:
    """What is wrong and what would be right, for one of pydantic's errors.

    `value` is looked at for its type alone: it may be a secret. `model` is the
    part of the plan the key belongs to.
    """
    kind, context = detail["type"], detail.get("ctx", {})
    key = str(detail["loc"][-1]) if detail["loc"] else "the file"
    if kind == MISFIT:
        return str(context["wrong"]), str(context["right"])
    if kind == "missing":
        return f"the key `{key}` is missing", _meaning(key, model)
    if kind == "extra_forbidden":
        return f"there is no key `{key}` here", _instead(key, model)
    if kind in _TYPES:
        return _wrong_type(kind, value)
    if kind in ("enum", "literal_error"):
        return "this value is not one of those allowed", f"use {context['expected']}"
    if kind in ("too_short", "string_too_short"):
        return "the value is empty", "give at least one" if kind == "too_short" else "write something"
    if kind.startswith("date_"):
        return "this is not a date", "write it as 2026-03-01"
    return "this value does not fit", detail["msg"][0].lower() + detail["msg"][1:]


def _wrong_type(kind: str, value: object) -> tuple[str, str]:
    wanted = _TYPES[kind]
    if value is None:
        return "the value is empty", f"give {wanted}"
    if kind == "string_type" and isinstance(value, int | float):
        return "YAML reads this as a number or a truth value, not as text", "put it in quotes"
    if kind == "date_type":
        return "this is not a date", "write it as 2026-03-01"
    if kind == "tuple_type":
        return "this is not a list", "start each entry with `- `, or write [one, two]"
    return f"this is not {wanted}", f"give {wanted}"


def _meaning(key: str, model: type[BaseModel] | None) -> str:
    field = model.model_fields.get(key) if model else None
    if field is None or not field.description:
        return "add it"
    text = field.description.rstrip(".")
    # Names keep their capitals: RPO, PostgreSQL.
    ordinary = text.split()[0][1:].islower()
    return f"add it: {text[0].lower() if ordinary else text[0]}{text[1:]}"


def _instead(key: str, model: type[BaseModel] | None) -> str:
    names = list(model.model_fields) if model else []
    near = nearest(key, names)
    if near is not None:
        return f"did you mean `{near}`?"
    return "use one of " + ", ".join(f"`{name}`" for name in names) if names else "remove it"


def model_at(root: type[BaseModel], where: Path) -> type[BaseModel] | None:
    """The model that a path of keys and indexes leads to, or None when it leads to no model."""
    model: type[BaseModel] | None = root
    for key in where:
        if isinstance(key, int):
            continue  # lists hold one kind of model, found by their key already
        field = model.model_fields.get(key) if model else None
        model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in found if model), None)
