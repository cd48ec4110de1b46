"""The plan written out: as YAML for a file, as JSON Schema for editors."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from bot.plan_file.document import DrPlan


def dump(plan: DrPlan) -> str:
    """The plan as YAML that `load` reads back to an equal plan; defaults are left out."""
    data = plan.model_dump(mode="json", exclude_defaults=True)
    yaml = YAML(typ="rt", pure=True)
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    yaml.dump(_quoted(data), text)
    return text.getvalue()


def _quoted(value: Any) -> Any:
    # Double quotes keep every string a string, whatever it looks like: a phone
    # number, a date, `02:00 UTC`, `no`, or text with quotes and line breaks.
    if isinstance(value, dict):
        return {key: _quoted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(item) for item in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) else value


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the plan file, with descriptions and units."""
    document = DrPlan.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}
