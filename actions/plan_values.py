"""What the keys of a plan file are made of: parts, texts with a form, references to secrets.

An engine for base backups declares its own keys with these (`actions.engine`); `bot.plan_file.values` has the rest.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MISFIT = "plan_misfit"
"""Type of the validation errors made by `misfit`; their context holds `wrong` and `right`."""


def misfit(wrong: str, right: str) -> PydanticCustomError:
    """The error (a ValueError) for a value that does not fit: what is wrong, what would be right."""
    return PydanticCustomError(MISFIT, "{wrong}; {right}", {"wrong": wrong, "right": right})


@dataclass(frozen=True)
class Shape:
    """A pattern a text must match, with the sentence that tells what would be right."""

    pattern: str
    right: str
    repeat: bool = True
    """Whether a message may repeat the rejected text; never for what may be a secret."""

    def _check(self, text: str) -> str:
        if re.fullmatch(self.pattern, text) is None:
            raise misfit(f"`{text}` has the wrong form" if self.repeat else "this has the wrong form", self.right)
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "pattern": f"^(?:{self.pattern})$"}


class Part(BaseModel):
    """A part of the plan: immutable, and an unknown key is an error.

    `hide_input_in_errors` keeps a secret that was typed into the file by
    mistake out of the exception's text.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        str_strip_whitespace=True,
        use_attribute_docstrings=True,
    )


# -- references --------------------------------------------------------------

_SCHEMES = {
    "env": r"env:[A-Za-z_][A-Za-z0-9_]*",
    "file": r"file:/[^\s]+",
    "k8s": r"k8s:[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*/[A-Za-z0-9._-]+",
    "vault": r"vault:[A-Za-z0-9_./-]+#[A-Za-z0-9_.-]+",
}
SECRET_REF_PATTERN = "^(?:" + "|".join(_SCHEMES.values()) + ")$"
_FORMS = "env:NAME, file:/path, k8s:namespace/secret/key or vault:path#key"


def is_reference(text: str) -> bool:
    """True when the text is a well-formed reference rather than a literal."""
    return re.fullmatch(SECRET_REF_PATTERN, text) is not None


def _secret_ref(text: str) -> str:
    if is_reference(text):
        return text
    if text.partition(":")[0] in _SCHEMES:
        raise misfit("this reference is malformed", f"write {_FORMS}")
    # The text itself is never repeated: it may be the secret.
    raise misfit("a secret is never written into the plan", f"give a reference: {_FORMS}")


def _text_ref(text: str) -> str:
    if not text:
        raise misfit("the value is empty", "give a value or leave the key out")
    if "${" in text:
        raise misfit("${NAME} is not expanded", "write the whole value as env:NAME")
    scheme = text.partition(":")[0]
    if scheme in _SCHEMES and not is_reference(text):
        raise misfit("this reference is malformed", f"write {_FORMS}")
    return text


SecretRef = Annotated[
    str,
    AfterValidator(_secret_ref),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": SECRET_REF_PATTERN,
            "description": f"A reference to a secret, never the secret: {_FORMS}.",
            "examples": ["env:DR_DATABASE_DSN", "k8s:dr/superprismora-dr/signing-key"],
        }
    ),
]
"""A checked reference; the `Secrets` port resolves it at the moment of use."""

TextRef = Annotated[
    str,
    AfterValidator(_text_ref),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "description": f"A plain value, or a reference to it: {_FORMS}.",
        }
    ),
]
"""A value that differs between sites: a literal, or a reference."""


# -- texts -------------------------------------------------------------------

Text = Annotated[str, Field(min_length=1)]
Flag = Annotated[bool, Strict()]
