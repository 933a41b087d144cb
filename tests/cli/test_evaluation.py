"""`qlora tiny` and `qlora eval` through the real command line."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

TINY = ("--steps", 2, "--hidden", 64, "--layers", 1, "--heads", 1, "--vocab", 300)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(f"The cat number {n} sat on the mat and looked at the other cats." for n in range(40)))
    return path


def test_tiny_makes_a_base_that_plain_transformers_loads(call, corpus, tmp_path):
    ran = call("tiny", "base", "--corpus", corpus, *TINY, "--json")
    assert ran.code == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert ran.json["num_parameters"] == model.num_parameters()
    assert ran.json["vocab_size"] == len(AutoTokenizer.from_pretrained(tmp_path / "base")) == model.config.vocab_size
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (64, 1)


def test_tiny_says_where_and_how_large(call, corpus):
    ran = call("tiny", "base", "--corpus", corpus, *TINY)
    assert ran.out.startswith("wrote base: ")
    assert "in 2 steps" in ran.out


def test_tiny_with_another_seed_is_another_base(call, corpus, tmp_path):
    for folder, seed in (("one", 1), ("two", 2), ("again", 1)):
        assert call("tiny", folder, "--corpus", corpus, *TINY, "--seed", seed).code == 0
    one, two, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "again"))
    assert one == again != two


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [(("--hidden", 100), "not a multiple of 64"), (("--vocab", 10), "--vocab is 10"), (("--heads", 3), "--heads is 3")],
)
def test_tiny_refuses_sizes_that_do_not_fit(call, corpus, tmp_path, arguments, fragment):
    ran = call("tiny", "base", "--corpus", corpus, *arguments)
    assert ran.code == 2
    assert fragment in ran.err
    assert not (tmp_path / "base").exists()


def test_tiny_does_not_write_into_a_folder_that_holds_something(call, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "mine").write_text("")
    assert call("tiny", "base").code == 2
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["mine"]


@pytest.fixture
def finished(call, recipe_file):
    assert call("train", recipe_file).code == 0
    return recipe_file.parent / "runs/small"


def test_eval_measures_the_latest_run_on_its_own_held_out_rows(call, finished):
    ran = call("eval", "--json")
    assert ran.code == 0
    loss, perplexity, bits, *_ = ran.json["measures"]
    assert [one["measure"] for one in (loss, perplexity, bits)] == ["loss", "perplexity", "bits_per_byte"]
    assert loss["values"]["tuned"]["value"] < loss["values"]["base"]["value"]
    assert [model["name"] for model in ran.json["models"]] == ["base", "tuned"]
    assert json.loads((finished / "eval/results.json").read_text()) == ran.json


def test_eval_prints_a_table_of_base_and_tuned(call, finished):
    header, loss, perplexity, *rest = call("eval", finished).out.splitlines()
    assert header.split() == ["measure", "base", "tuned", "difference", "[95%]", "verdict"]
    assert (loss.split()[0], perplexity.split()[0]) == ("loss", "perplexity")
    assert float(loss.split()[2]) < float(loss.split()[1])
    assert any(line.startswith("held-out loss: ") for line in rest)


def test_eval_of_several_models_names_them_and_compares_each(call, finished, tmp_path):
    shutil.copytree(finished / "adapter", tmp_path / "copy")
    ran = call("eval", finished, "copy", "--general-text", "none", "--json")
    assert [model["name"] for model in ran.json["models"]] == ["base", "small", "copy"]
    small, copy = (ran.json["measures"][0]["values"][name] for name in ("small", "copy"))
    assert small == copy
    against = call("eval", finished, "--against", "copy", "--general-text", "none", "--json")
    assert [model["name"] for model in against.json["models"]] == ["copy", "tuned"]
    [verdict] = against.json["verdicts"]
    assert (verdict["difference"], verdict["outcome"]) == (0.0, "no evidence")


def test_eval_of_a_merged_model_beside_its_run(call, finished, tmp_path):
    assert call("merge", finished, "--out", "merged", "--dtype", "float32").code == 0
    ran = call("eval", finished, "merged", "--general-text", "none", "--json")
    small, merged = (ran.json["measures"][0]["values"][name]["value"] for name in ("small", "merged"))
    assert merged == pytest.approx(small, rel=1e-4)


def test_eval_of_an_adapter_made_elsewhere_takes_data_and_tasks(call, finished, chat_data, tmp_path):
    shutil.copytree(finished / "adapter", tmp_path / "adapter")
    task = ("--task", chat_data, "--metric", "exact_match", "--metric", "contains", "--limit", 3, "--max-new-tokens", 2)
    ran = call("eval", "adapter", "--data", chat_data, *task, "--json")
    assert ran.code == 0
    counts = {one["measure"]: one["values"]["tuned"]["count"] for one in ran.json["measures"] if one["task"] == "sums"}
    assert counts == {"exact_match": 3, "contains": 3}
    assert ran.json["tasks"][1]["max_new_tokens"] == 2
    answers = [json.loads(line) for line in (tmp_path / "adapter/eval/answers-sums.jsonl").read_text().splitlines()]
    assert [answer["reference"] for answer in answers] == ["1", "3", "5"]


def test_the_hint_on_columns_is_an_option_of_eval_and_leads_to_a_measurement(call, finished, tmp_path):
    rows = [{"question": f"add {n} and 1", "answer": str(n + 1)} for n in range(3)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for option in ("--data", "--task"):
        ran = call("eval", finished, option, "asked.jsonl", "--max-new-tokens", 1)
        assert ran.code == 2
        [added] = re.findall(r"^hint: add `(.*)`$", ran.err, re.MULTILINE)
        assert call("eval", finished, option, "asked.jsonl", "--max-new-tokens", 1, *shlex.split(added)).code == 0


def test_eval_reads_a_file_by_the_mapping_that_the_run_was_trained_with(call, recipe_file, tmp_path):
    rows = [{"question": f"add {n} and 1", "answer": str(n + 1)} for n in range(12)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = "data.train={path: asked.jsonl, columns: {instruction: question, output: answer}}"
    assert call("train", recipe_file, "--set", train).code == 0
    ran = call("eval", "--data", "asked.jsonl", "--task", "asked.jsonl", "--limit", 2, "--max-new-tokens", 1, "--json")
    assert ran.code == 0
    assert [task["questions"] for task in ran.json["tasks"]][:2] == [12, 2]
    assert "asked.jsonl is read as the run's asked.jsonl" in ran.err


def test_columns_without_a_file_are_refused(call, finished):
    ran = call("eval", finished, "--columns", "output=answer")
    assert ran.code == 2
    assert "add --data FILE or --task FILE" in ran.err


def test_eval_of_an_adapter_made_elsewhere_needs_to_be_told_on_what(call, finished, tmp_path):
    shutil.copytree(finished / "adapter", tmp_path / "adapter")
    ran = call("eval", "adapter")
    assert ran.code == 2
    assert "--data FILE" in ran.err


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("nowhere",), "'nowhere' is not a run directory"),
        ((), "there is no run in 'runs'"),
    ],
)
def test_eval_says_what_is_missing(call, arguments, fragment):
    ran = call("eval", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert fragment in ran.err


@pytest.mark.parametrize(
    ("metric", "fragment"), [("accuracy", "unknown metric 'accuracy'"), ("contains", "--metric needs a --task")]
)
def test_eval_says_which_metric_does_not_fit(call, tiny_base, metric, fragment):
    ran = call("eval", tiny_base, "--metric", metric)
    assert (ran.code, ran.out) == (2, "")
    assert fragment in ran.err


def test_eval_of_a_run_whose_base_has_changed_is_exit_code_3(call, finished, tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "base")
    recipe = finished / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(tiny_base), str(tmp_path / "base")))
    assert call("eval", finished).code == 0  # the same weights in another place
    weights = tmp_path / "base/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    ran = call("eval", finished)
    assert ran.code == 3
    assert "its weights have changed" in ran.err


@pytest.fixture
def train_in_project(call, tmp_path, tiny_base, chat_data):
    """A function that trains a recipe whose paths are all relative."""
    shutil.copytree(tiny_base, tmp_path / "bases/tiny")
    (tmp_path / "rows.jsonl").write_bytes(chat_data.read_bytes())

    def train(**sections):
        recipe = {
            "model": {"base_model": "bases/tiny"},
            "data": {"train": "rows.jsonl", "max_length": 64, "eval_fraction": 0.1},
            "training": {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
        }
        (tmp_path / "one.yaml").write_text(json.dumps(recipe | sections))
        assert call("train", "one.yaml").code == 0
        return tmp_path

    return train


def test_eval_finds_base_and_data_from_another_directory_and_after_a_move(
    call, train_in_project, tmp_path_factory, monkeypatch
):
    project = train_in_project(eval={"tasks": [{"path": "rows.jsonl", "limit": 2, "max_new_tokens": 4}]})
    here = call("eval", "--json")
    assert here.code == 0
    assert "the latest run is runs/one\n" in here.err
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    from_there = call("eval", project / "runs/one", "--json")
    moved = project.rename(elsewhere / "moved")
    after_move = call("eval", moved / "runs/one", "--json")
    assert from_there.json["measures"] == after_move.json["measures"] == here.json["measures"]
    (moved / "rows.jsonl").unlink()
    lost = call("eval", moved / "runs/one")
    assert (lost.code, lost.out) == (2, "")
    assert lost.err.splitlines()[-1].endswith("; or name others with `--task FILE`")


def test_where_the_rows_are_gone_the_hint_leads_on(call, train_in_project):
    project = train_in_project()
    (project / "rows.jsonl").rename(project / "kept.jsonl")
    lost = call("eval")
    assert lost.code == 2
    assert lost.err.splitlines()[-1].endswith("; or name others with `--data FILE`")
    assert call("eval", "--data", "kept.jsonl").code == 0
