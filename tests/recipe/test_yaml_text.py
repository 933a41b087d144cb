"""YAML text to values with places."""

from __future__ import annotations

import pytest

from qlora_cli.recipe.yaml_text import parse_yaml


def plain(text):
    parsed = parse_yaml(text, "a.yaml")
    assert not parsed.problems
    return parsed.root.plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1e5", 1e5),
        (".5e-3", 5e-4),
        ("1.", 1.0),
        ("-3", -3),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("~", None),
        ("null", None),
        ("'2e-4'", "2e-4"),
        ("!!str 2", "2"),
        ("!!float 2", 2.0),
    ],
)
def test_scalars_follow_the_yaml_1_2_core_schema(text, value):
    seen = plain(f"a: {text}")["a"]
    assert seen == value
    assert type(seen) is type(value)


def test_each_value_knows_the_line_of_its_key():
    root = parse_yaml("a:\n  b:\n    - 1\n    - 2\nc:\n  4\n", "x.yaml").root
    assert str(root.child("a").child("b").place) == "x.yaml:2"
    assert str(root.child("a").child("b").child(1).place) == "x.yaml:4"
    assert str(root.child("c").place) == "x.yaml:5"


def test_an_anchor_can_be_merged_and_overridden():
    assert plain("a: &a {r: 8, b: 1}\nc:\n  <<: *a\n  r: 16\n")["c"] == {"r": 16, "b": 1}


def test_the_first_of_several_merged_mappings_wins():
    assert plain("a: &a {r: 8}\nb: &b {r: 16, s: 1}\nc: {<<: [*a, *b]}\n")["c"] == {"r": 8, "s": 1}


def test_a_quoted_merge_key_is_text():
    assert plain("'<<': 1") == {"<<": 1}


def test_an_alias_bomb_is_refused_and_not_expanded():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    parsed = parse_yaml("\n".join(lines), "a.yaml")
    assert parsed.root is None
    assert "too large" in parsed.problems[0][1].text


def test_an_alias_inside_its_own_value_is_refused():
    assert "too large" in parse_yaml("a: &a [*a]", "a.yaml").problems[0][1].text


def test_no_tag_runs_code(tmp_path):
    target = tmp_path / "made"
    parsed = parse_yaml(f"a: !!python/object/apply:os.mkdir ['{target}']", "a.yaml")
    assert "is not allowed" in parsed.problems[0][1].text
    assert not target.exists()


def test_nesting_beyond_all_reason_is_one_problem():
    assert len(parse_yaml("[" * 5000, "a.yaml").problems) == 1
    assert len(parse_yaml("[" * 200 + "]" * 200, "a.yaml").problems) == 1
