"""dump writes what load reads back: the same plan, whatever its texts hold."""

from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from bot.plan_file import (
    Contact,
    DrPlan,
    Invariant,
    PlanStep,
    Runbook,
    dump,
    format_duration,
    load,
    parse_duration,
)
from bot.plan_file.values import Part

SHIPPED = load(Path(__file__).parents[2] / "dr-plan.yml")

# Control characters cannot stand in YAML or in a person's text; surrogates cannot be saved as UTF-8.
letters = st.characters(exclude_categories=("Cc", "Cs", "Cn", "Co"), include_characters="\n")
texts = st.one_of(
    st.sampled_from(["no", "2026-03-01", "02:00", "+4930", "null", "a: b", "# x", "'", '"', "*x", "%y", "{", "- z"]),
    st.text(letters, min_size=1, max_size=40),
).filter(lambda text: text.strip() != "")
names = st.text(letters, min_size=1, max_size=15).filter(lambda text: text.strip() != "")
durations = st.integers(1, 10**8).map(lambda seconds: timedelta(seconds=seconds))


def changed(part: Part, **values: object) -> dict[str, object]:
    return {**{name: getattr(part, name) for name in type(part).model_fields}, **values}


def saved_and_loaded(plan: DrPlan) -> DrPlan:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "dr-plan.yml"
        path.write_text(dump(plan), encoding="utf-8", newline="")
        return load(path)


@settings(max_examples=25)
@given(text=texts, name=texts, rpo=durations, owner=names, version=texts)
def test_a_dumped_plan_is_loaded_equal(text: str, name: str, rpo: timedelta, owner: str, version: str) -> None:
    assert SHIPPED.document is not None
    database = type(SHIPPED.databases[0]).model_validate(
        changed(
            SHIPPED.databases[0],
            owner=owner,
            invariants=(Invariant(name="n", sql="SELECT 1", description=text),),
        )
    )
    plan = DrPlan.model_validate(
        changed(
            SHIPPED,
            owner=name,
            databases=(database,),
            document=type(SHIPPED.document).model_validate(changed(SHIPPED.document, version=version)),
            objectives=type(SHIPPED.objectives).model_validate(changed(SHIPPED.objectives, rpo=rpo, rto_by=text)),
            contacts=(Contact(role=text, name=name, phone=version, email=text),),
            runbooks=(Runbook(name="r", title=text, steps=(PlanStep(text=text, by_hand=(name, version)),)),),
        )
    )
    assert saved_and_loaded(plan) == plan


def test_the_shipped_plan_survives_being_saved() -> None:
    assert saved_and_loaded(SHIPPED) == SHIPPED


@given(durations)
def test_a_duration_is_read_back_equal(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


def test_durations_are_written_the_short_way() -> None:
    written = {text: format_duration(parse_duration(text)) for text in ("90m", "1w", "1h0m", "3600s", "30d", "15m")}
    assert written == {"90m": "1h30m", "1w": "7d", "1h0m": "1h", "3600s": "1h", "30d": "30d", "15m": "15m"}
