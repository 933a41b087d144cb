"""Any recipe that the schema allows survives the way to YAML and back."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from qlora_cli.recipe.json_schema import options_of, recipe_json_schema
from qlora_cli.recipe.reader import dump_recipe, load_recipe
from qlora_cli.recipe.rules import check_rules

WORDS = st.one_of(
    st.sampled_from(["on", "no", "null", "~", "1e5", "2e-4", "0x1f", "2024-01-01", "<<", "a: b", "# x", "1_0", "="]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
)


def values_of(field):
    """Values that the JSON Schema of a field allows; few optional keys at once, so that few contradict."""
    return st.one_of([_values_of_option(option) for option in options_of(field)])


def _values_of_option(option):
    if "const" in option:
        return st.just(option["const"])
    if "enum" in option:
        return st.sampled_from(option["enum"])
    if option.get("format") == "date":
        return st.dates().map(str)
    if "pattern" in option:
        return st.from_regex(option["pattern"].replace("$", r"\Z"))
    match option.get("type"):
        case "integer":
            return st.integers(option.get("minimum", 0), option.get("maximum", 10**6))
        case "number":
            low, high = (option.get(name, option.get(f"exclusive{name.title()}")) for name in ("minimum", "maximum"))
            return st.floats(
                low, high, exclude_min="exclusiveMinimum" in option, exclude_max="exclusiveMaximum" in option
            )
        case "boolean":
            return st.booleans()
        case "string":
            return WORDS
        case "array":
            return st.lists(values_of(option["items"]), min_size=option.get("minItems", 0), max_size=2)
    if "properties" not in option:
        return st.dictionaries(WORDS, WORDS, max_size=2)
    keys = {key: values_of(below) for key, below in option["properties"].items() if key != "extends"}
    required = option.get("required", [])
    chosen = st.sets(st.sampled_from([key for key in keys if key not in required]), max_size=2)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({key: keys[key] for key in {*required, *names}}))


def recipes():
    sections = recipe_json_schema()["properties"]
    optional = {key: values_of(field) for key, field in sections.items() if key not in ("extends", "model", "data")}
    model = values_of(sections["model"]).map(lambda values: {"base_model": "b"} | values)
    data = values_of(sections["data"]).map(lambda values: {"train": "rows.jsonl"} | values)
    return st.fixed_dictionaries({"model": model, "data": data}, optional=optional)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(values=recipes())
def test_a_dumped_recipe_loads_back_equal(write_recipe, values):
    assume(not check_rules(values))
    recipe = load_recipe(write_recipe(json.dumps(values, ensure_ascii=False)))
    assert load_recipe(write_recipe(dump_recipe(recipe), "again.yaml")) == recipe
