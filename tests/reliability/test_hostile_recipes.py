"""A recipe is text: nothing in it is run, no name in it leads out of its folder, and no bomb in it goes off."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

TAGS = {
    "apply": "!!python/object/apply:os.system ['touch CANARY']",
    "new": "!!python/object/new:os.system ['touch CANARY']",
    "name": "!!python/name:os.system ''",
    "module": "!!python/module:os ''",
    "object": "!!python/object:builtins.object {}",
    "tuple": "!!python/tuple [1]",
    "own": "!evil 'touch CANARY'",
    "binary": "!!binary aGk=",
    "timestamp": "!!timestamp 2020-01-01",
    "long tag": "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch CANARY']",
}


def laughs(levels: int) -> str:
    """YAML that says a few lines and means ten to the power of `levels`."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merged_laughs(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


BOMBS = {
    "billion laughs": laughs(12),
    "billion merges": merged_laughs(12),
    "deep lists": "a: " + "[" * 50_000,
    "deep mappings": "a: " + "{a: " * 50_000,
    "deep blocks": "\n".join(" " * n + "a:" for n in range(1000)),
    "alias of itself": "a: &a [*a]",
    "merge of itself": "a: &a\n  <<: *a\n  b: 1",
    "a number of a million digits": "training: {max_steps: " + "9" * 1_000_000 + "}",
    "many keys": "\n".join(f"k{n}: 1" for n in range(20_000)),
    "many documents": "---\na: 1\n" * 100_000,
    "a long scalar": "name: " + "x" * 1_000_000,
    "nothing but quotes": "'" * 1_000_000,
    "nothing but anchors": "&a " * 100_000,
    "bytes": "\0" * 1000,
    "surrogate": 'name: "\\ud800"',
}


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS.keys())
def test_a_tag_in_a_recipe_makes_nothing(place, tag):
    recipe = place.write_recipe()
    text = f"{{lora: {{r: {tag.replace('CANARY', str(place.canary))}}}, "
    recipe.write_text(text + recipe.read_text().removeprefix("{"))
    ended = place.qlora("train", "recipe.yaml")
    assert ended.exit_code == 2
    assert "tag" in ended.said


def test_a_tag_in_an_override_makes_nothing(place):
    place.write_recipe()
    value = TAGS["apply"].replace("CANARY", str(place.canary))
    assert place.qlora("train", "recipe.yaml", "--set", f"lora.r={value}").exit_code == 2


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_in_a_recipe_does_not_go_off(place, bomb):
    (place.here / "recipe.yaml").write_text(bomb)
    ended = place.qlora("validate", "recipe.yaml")
    assert ended.exit_code == 2
    assert "recipe.yaml" in ended.said


NAMES = ["../../outside/x", "/tmp/x", "..", ".", "a/b", "a\\b", ".hidden", "", "x\ny", "x\u202e", "~", "$HOME", "-rf"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(place, name):
    ended = place.qlora("train", str(place.write_recipe(name=name)))
    assert ended.exit_code == 2
    assert not place.run.exists()


@pytest.mark.parametrize("name", ["../../outside/x", "/tmp/x", "..", "a/b", "x/../../../outside/y", ""])
def test_a_task_whose_name_leads_elsewhere_is_refused(place, name):
    tasks = [{"path": "sums.jsonl", "name": name, "max_new_tokens": 1}]
    ended = place.qlora("train", str(place.write_recipe(eval={"tasks": tasks})))
    assert ended.exit_code == 2
    assert "name" in ended.said


def test_a_task_named_after_a_file_in_another_folder_writes_beside_the_others(place):
    (place.outside / "sums.jsonl").write_text((place.here / "sums.jsonl").read_text())
    tasks = [{"path": str(place.outside / "sums.jsonl"), "max_new_tokens": 1, "limit": 1}]
    assert place.qlora("train", str(place.write_recipe(eval={"tasks": tasks}))).exit_code == 0
    ended = place.qlora("eval", "runs/x")
    assert ended.exit_code == 0, ended.said
    assert (place.run / "eval" / "answers-sums.jsonl").is_file()


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "..", "pipe", "large", "recipe.yaml", "/etc/passwd"])
def test_a_part_that_is_no_recipe_is_refused(place, target):
    os.mkfifo(place.here / "pipe")
    with (place.here / "large").open("wb") as file:
        file.truncate(1 << 36)
    place.write_recipe(extends=[target])
    ended = place.qlora("train", "recipe.yaml")
    assert ended.exit_code == 2
    assert "extends" in ended.said or target in ended.said


def test_a_long_chain_of_parts_is_refused(place):
    for number in range(3000):
        (place.here / f"part-{number}.yaml").write_text(f"extends: part-{number + 1}.yaml\n")
    (place.here / "part-3000.yaml").write_text("lora: {r: 2}\n")
    place.write_recipe(extends=["part-0.yaml"])
    ended = place.qlora("validate", "recipe.yaml")
    assert ended.exit_code == 2
    assert "extends" in ended.said


def test_parts_that_all_name_each_other_are_read_once(place):
    for number in range(60):
        later = [f"part-{other}.yaml" for other in range(number + 1, 60)]
        (place.here / f"part-{number}.yaml").write_text(json.dumps({"extends": later} if later else {"lora": {"r": 2}}))
    place.write_recipe(extends=["part-0.yaml"])
    assert place.qlora("validate", "recipe.yaml").exit_code == 0


@pytest.mark.parametrize("out", ["..", ".", "outside-link", "/dev/null", "base"])
def test_a_folder_that_is_in_use_is_not_written_over(place, out):
    (place.here / "outside-link").symlink_to(place.outside)
    place.write_recipe()
    for command in (("merge",), ("export",)):
        ended = place.qlora(*command, "made-elsewhere/adapter", "--out", out, "--force" if out != "base" else "--json")
        assert ended.exit_code == 2, ended.said
    assert (place.outside / "precious").read_text() == "keep"


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside/precious", "../outside"])
def test_data_that_is_no_data_file_is_refused(place, path):
    ended = place.qlora("train", str(place.write_recipe(data={"train": path})))
    assert ended.exit_code == 2, ended.said


def test_a_recipe_that_is_a_folder_or_a_device_is_refused(place):
    for path in (Path("/dev/zero"), place.outside, place.here / "large"):
        if path.name == "large":
            with path.open("wb") as file:
                file.truncate(1 << 36)
        assert place.qlora("validate", str(path)).exit_code == 2
