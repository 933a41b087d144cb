"""Configs of other tools become recipes: each key is translated, listed or refused, and the recipe validates."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from qlora_cli.cli.app import app
from qlora_cli.data.read.converters import FORMATS
from qlora_cli.errors import ArgumentError, QloraError, RecipeError
from qlora_cli.recipe.foreign_file import translate
from qlora_cli.recipe.foreign_keys import FOREIGN_KEYS
from qlora_cli.recipe.foreign_sources import _described_source
from qlora_cli.recipe.foreign_text import write_translation
from qlora_cli.recipe.foreign_tools import TOOLS
from qlora_cli.recipe.foreign_values import SECTIONS, UNKNOWN
from qlora_cli.recipe.json_schema import all_keys, field_at
from qlora_cli.recipe.reader import load_recipe
from tests.recipe.test_hints import sample

AXOLOTL = {
    "base_model": "org/base",
    "adapter": "qlora",
    "load_in_4bit": True,
    "datasets": [{"path": "org/rows", "type": "alpaca", "split": "train[:10%]"}],
    "val_set_size": 0.05,
    "sequence_len": 4096,
    "sample_packing": True,
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_target_linear": True,
    "lora_target_modules": ["q_proj"],
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_epochs": 3,
    "optimizer": "adamw_bnb_8bit",
    "lr_scheduler": "cosine",
    "learning_rate": "2e-4",
    "bf16": "auto",
    "tf32": True,
    "gradient_checkpointing": "offload",
    "warmup_steps": 10,
    "evals_per_epoch": 4,
    "saves_per_epoch": 1,
    "wandb_project": None,
    "flash_attention": True,
    "loraplus_lr_ratio": 16,
    "neftune_noise_alpha": 5,
    "early_stopping_patience": 3,
}
LLAMA_FACTORY = {
    "model_name_or_path": "org/base",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "q_proj, v_proj",
    "quantization_bit": 8,
    "dataset": "one, two",
    "template": "llama3",
    "cutoff_len": 1024,
    "val_size": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "mask_history": True,
    "flash_attn": "fa2",
    "pure_bf16": True,
    "per_device_train_batch_size": 1,
    "learning_rate": 1e-4,
    "report_to": "none",
}
TRL = {
    "model_name_or_path": "org/base",
    "use_peft": True,
    "load_in_4bit": True,
    "dataset_name": "org/rows",
    "dataset_config": "en",
    "dataset_train_split": "train_sft",
    "dataset_test_split": "test_sft",
    "eval_strategy": "epoch",
    "max_length": 2048,
    "assistant_only_loss": False,
    "torch_dtype": "bfloat16",
    "lora_target_modules": "all-linear",
    "max_steps": -1,
    "num_train_epochs": 2,
    "report_to": ["wandb", "comet_ml"],
}
CONFIGS = {"axolotl": AXOLOTL, "LLaMA-Factory": LLAMA_FACTORY, "TRL": TRL}


@pytest.fixture
def translated(tmp_path, monkeypatch):
    """The translation of a config, and the recipe that is written of it."""
    monkeypatch.chdir(tmp_path)

    def run(config, **given):
        source = tmp_path / "config.yml"
        source.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        translation = translate(source, given)
        out = tmp_path / "recipe.yaml"
        write_translation(translation, source, out, overwrite=True)
        return translation, load_recipe(out), out.read_text()

    return run


def test_axolotls_qlora_config(translated):
    translation, recipe, text = translated(AXOLOTL)
    assert translation.tool.name == "axolotl"
    assert (recipe.model.base_model, recipe.model.dtype) == ("org/base", "auto")
    assert recipe.model.attn_implementation == "flash_attention_2"
    assert recipe.quantization.quant_type == "nf4"
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.target_modules) == (32, 16.0, "all-linear")
    assert (recipe.lora.lora_dropout, recipe.lora.loraplus_lr_ratio) == (0.0, 16.0)
    [source] = recipe.data.train
    assert (source.path, source.format, source.split) == ("org/rows", "alpaca", "train[:10%]")
    assert (recipe.data.eval_fraction, recipe.data.max_length, recipe.data.packing) == (0.05, 4096, True)
    assert recipe.data.truncation == "drop"
    training = recipe.training
    assert (training.learning_rate, training.optim, training.num_train_epochs) == (2e-4, "adamw_8bit", 3.0)
    assert (training.gradient_checkpointing, training.activation_offloading) == (True, True)
    assert (training.neftune_noise_alpha, training.early_stopping_patience) == (5.0, 3)
    assert (training.save_strategy, recipe.eval.eval_strategy) == ("epoch", "epoch")
    assert "# sequence_len" in text
    assert {outcome.key for outcome in translation.lost} == {"tf32", "warmup_steps", "evals_per_epoch"}
    assert {"wandb_project", "lora_target_modules"} <= {outcome.key for outcome in translation.needless}


def test_llama_factorys_config(translated):
    translation, recipe, text = translated(LLAMA_FACTORY)
    assert translation.tool.name == "LLaMA-Factory"
    assert recipe.quantization.quant_type == "int8"
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.target_modules) == (8, 16.0, ("q_proj", "v_proj"))
    assert [source.path for source in recipe.data.train] == ["data/one.json", "data/two.json"]
    assert (recipe.data.train_on, recipe.data.max_length, recipe.data.packing) == ("last_turn", 1024, False)
    assert (recipe.eval.eval_strategy, recipe.eval.eval_steps) == ("steps", 500)
    assert (recipe.model.dtype, recipe.lora.autocast_adapter_dtype) == ("bfloat16", False)
    assert (recipe.training.lr_scheduler_type, recipe.training.warmup_ratio) == ("linear", 0.0)
    assert {outcome.key for outcome in translation.lost} == {"dataset.one", "dataset.two", "template"}
    assert "#   template: llama3 - " in text


def test_its_datasets_are_looked_up_where_dataset_info_is_there(translated, tmp_path):
    (tmp_path / "sets").mkdir()
    one = {"file_name": "o.json", "formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": {"role_tag": "r"}}
    info = {"one": one, "two": {"hf_hub_url": "org/two", "columns": {"prompt": "ask", "response": "say"}}}
    (tmp_path / "sets" / "dataset_info.json").write_text(json.dumps(info))
    translation, recipe, _ = translated(LLAMA_FACTORY | {"dataset_dir": "sets"})
    one, two = recipe.data.train
    assert (one.path, one.format, one.columns) == ("sets/o.json", "sharegpt", {"conversations": "talk"})
    assert (two.path, two.columns) == ("org/two", {"instruction": "ask", "output": "say"})
    assert {outcome.key for outcome in translation.lost} == {"dataset.one.tags", "template"}


def test_sharegpt_with_the_tags_of_openai_is_messages(translated, tmp_path):
    (tmp_path / "sets").mkdir()
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
    one = {"file_name": "o.json", "formatting": "sharegpt", "columns": {"messages": "talk", "tools": "t"}, "tags": tags}
    (tmp_path / "sets" / "dataset_info.json").write_text(json.dumps({"one": one}))
    translation, recipe, _ = translated(LLAMA_FACTORY | {"dataset_dir": "sets", "dataset": "one"})
    [source] = recipe.data.train
    assert (source.format, source.columns) == ("messages", {"messages": "talk", "tools": "t"})
    assert {outcome.key for outcome in translation.lost} == {"template"}


def test_files_of_a_hub_dataset_are_picked(translated):
    files = {"path": "org/rows", "data_files": ["data/a.jsonl"]}
    _, recipe, _ = translated(AXOLOTL | {"datasets": [files]})
    assert recipe.data.train[0].path == "hf://datasets/org/rows/data/a.jsonl"


def denied(translation):
    """Keys that are said to have no counterpart, not those whose value does not fit or that another key decides."""
    return {
        outcome.key
        for outcome in translation.lost
        if outcome.why == UNKNOWN or "no counterpart" in outcome.why or "no such" in outcome.why
    }


OURS = [full for full in all_keys() if full.count(".") == 1 and full.partition(".")[0] in SECTIONS]
NAMES = sorted({full.rpartition(".")[2] for full in OURS} - {"base_model", "tasks"})


@pytest.mark.parametrize("tool", CONFIGS)
@pytest.mark.parametrize("name", NAMES)
def test_no_key_that_the_schema_has_is_denied(translated, tool, name):
    [ours, *_] = [full for full in OURS if full.endswith(f".{name}")]
    translation, _, _ = translated(CONFIGS[tool] | {name: sample(ours)})
    assert name not in denied(translation)


@pytest.mark.parametrize(
    ("tool", "key", "section"),
    [
        ("axolotl", "bnb_config_kwargs", "quantization"),
        ("LLaMA-Factory", "quant_config", "quantization"),
        ("LLaMA-Factory", "peft_config", "lora"),
    ],
)
def test_nor_inside_a_key_that_holds_such_keys(translated, tool, key, section):
    values = {full.rpartition(".")[2]: sample(full) for full in OURS if full.startswith(f"{section}.")}
    translation, _, _ = translated(CONFIGS[tool] | {key: values})
    assert denied(translation) & {f"{key}.{name}" for name in values} == set()


def test_nor_a_key_of_a_source(translated, tmp_path):
    values = {"split": "a", "revision": "b", "subset": "c", "streaming": True, "weight": 2}
    assert {"path", "format", "columns", "ignore", "leave_out", *values} == {
        full.rpartition(".")[2] for full in all_keys() if full.startswith("data.train.")
    }
    _, recipe, _ = translated(AXOLOTL | {"datasets": [{"path": "org/rows", **values}]})
    assert values.items() <= recipe.data.train[0].model_dump().items()


def test_nor_a_field_of_a_format_or_a_tracker(translated):
    read = {field for layout in FORMATS.values() for field in layout.unmapped} - {"prompt", "completion", "text"}
    columns = dict.fromkeys(("prompt", "query", "response", "system", "history", "tools", "messages"), "c")
    found = {}
    for formatting in ("alpaca", "sharegpt", "openai"):
        for outcome in _described_source("d", {"formatting": formatting, "columns": columns}, "data"):
            assert not outcome.why
            found |= outcome.settings.get("columns", {})
    assert set(found) == read
    trackers = field_at(("tracking", "report_to"))["items"]["enum"]
    _, recipe, _ = translated(TRL | {"report_to": trackers})
    assert recipe.tracking.report_to == tuple(trackers)


def test_trls_config(translated):
    translation, recipe, _ = translated(TRL)
    assert translation.tool.name == "TRL"
    assert (recipe.quantization.quant_type, recipe.quantization.double_quant) == ("nf4", False)
    [train], [held_out] = recipe.data.train, recipe.data.eval
    assert (train.path, train.subset, train.split) == ("org/rows", "en", "train_sft")
    assert (held_out.path, held_out.split, recipe.eval.eval_strategy) == ("org/rows", "test_sft", "epoch")
    assert (recipe.data.train_on, recipe.data.max_length) == ("all", 2048)
    assert (recipe.training.num_train_epochs, recipe.training.max_steps) == (2.0, None)
    assert recipe.tracking.report_to == ("wandb",)
    assert [outcome.key for outcome in translation.lost] == ["report_to"]


@pytest.mark.parametrize(
    ("tool", "change", "text"),
    [
        ("axolotl", {"adapter": None}, "every run trains an adapter"),
        ("axolotl", {"rl": "dpo"}, "'rl: dpo' trains on preferences"),
        ("axolotl", {"gptq": True}, "another quantization"),
        ("axolotl", {"datasets": None}, "names no data"),
        ("axolotl", {"base_model": None}, "names no base model"),
        ("LLaMA-Factory", {"stage": "ppo"}, "'stage: ppo' trains on preferences"),
        ("LLaMA-Factory", {"finetuning_type": "full"}, "every run trains an adapter"),
        ("LLaMA-Factory", {"quantization_bit": 3}, "4 and 8 bits"),
        ("TRL", {"use_peft": False}, "every run trains an adapter"),
    ],
    ids=str,
)
def test_another_kind_of_training_is_refused(translated, tool, change, text):
    with pytest.raises(RecipeError, match=text) as caught:
        translated(CONFIGS[tool] | change)
    assert caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("a: 1\na: 2\n", "occurs twice"),
        ("[1, 2]", "holds no keys"),
        ("a: [", "is not YAML"),
        ("model: {base_model: x}\ndata: {train: y}\n", "no key that shows which tool it is of"),
        ("- !!python/object/apply:os.system [ls]\n", "is not YAML"),
        ("sequence_len: " + "[" * 5000, "is not YAML"),
    ],
    ids=["double", "list", "broken", "recipe", "tag", "nested"],
)
def test_a_file_of_no_tool_is_refused_in_a_line(translated, config, text):
    with pytest.raises(ArgumentError, match=text):
        translated(config)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2048),
    st.floats(allow_nan=True),
    st.sampled_from(["auto", "epoch", "steps", "no", "all", "1e-4", "a,b", "bnb", "ü\n# x", "lora"]),
    st.lists(st.sampled_from(["q_proj", "v_proj", 3, None]), max_size=3),
    st.dictionaries(
        st.sampled_from(["path", "type", "name", "r"]), st.integers(0, 9) | st.text(max_size=5), max_size=2
    ),
)
DATASET_KEYS = ["split", "revision", "name", "type", "data_files", "field_instruction", "ds_type", "shards", "x"]
DATASET_KEYS += ["message_property_mappings", "field_messages"]
ALL_KEYS = sorted(
    {key for tool in TOOLS for key in tool.handlers} | {key for keys in FOREIGN_KEYS.values() for key in keys}
)


@settings(max_examples=150, deadline=None)
@given(
    tool=st.sampled_from(sorted(CONFIGS)),
    changes=st.dictionaries(st.sampled_from(ALL_KEYS) | st.text(min_size=1, max_size=8), ODD, max_size=8),
)
def test_each_key_is_translated_listed_or_refused_and_the_recipe_validates(tmp_path_factory, tool, changes):
    folder = tmp_path_factory.mktemp("odd")
    config = CONFIGS[tool] | changes
    source, out = folder / "config.yml", folder / "recipe.yaml"
    source.write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        translation = translate(source, {})
        write_translation(translation, source, out, overwrite=True)
    except QloraError:
        return
    load_recipe(out)
    said = {key for keys in translation.origins.values() for key in keys}
    said |= {outcome.key for outcome in (*translation.lost, *translation.needless)}
    missing = [key for key in config if not any(one == key or one.startswith((f"{key}.", f"{key}[")) for one in said)]
    assert missing == []


@settings(max_examples=100, deadline=None)
@given(keys=st.lists(st.tuples(st.sampled_from(DATASET_KEYS), ODD), max_size=6), has_path=st.booleans())
def test_each_key_of_a_dataset_too(tmp_path_factory, keys, has_path):
    folder = tmp_path_factory.mktemp("odd")
    dataset = {**({"path": "org/rows"} if has_path else {}), **dict(keys)}
    source = folder / "config.yml"
    source.write_text(yaml.safe_dump(AXOLOTL | {"datasets": [{"path": "org/first"}, dataset]}), encoding="utf-8")
    translation = translate(source, {})
    said = {outcome.key for outcome in (*translation.lost, *translation.needless)}
    kept = {"path": "path", "split": "split", "revision": "revision", "name": "subset"}
    sources = translation.settings["data.train"]
    for key, value in dataset.items():
        is_kept = any(str(value) == str(one.get(kept.get(key, ""))) for one in sources)
        first = value[0] if isinstance(value, list) and value else value
        is_kept |= key == "path" and any(str(value) in one["path"] for one in sources)
        is_kept |= key == "data_files" and any(str(first) in one["path"] for one in sources)
        in_columns = any(str(value) in one.get("columns", {}).values() for one in sources)
        is_format = key == "type" and any("format" in one for one in sources)
        is_said = any(one == f"datasets[1].{key}" or one.startswith(f"datasets[1].{key}.") for one in said)
        assert value in (None, {}) or is_kept or in_columns or is_format or is_said or "datasets[1]" in said, key


def test_the_command_writes_the_recipe_and_lists_what_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "axolotl.yml").write_text(yaml.safe_dump(AXOLOTL))
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n')
    ran = CliRunner().invoke(app, ["init", "--from", "axolotl.yml", "--data", "mine.jsonl", "--out", "new.yaml"])
    assert ran.exit_code == 0, ran.output
    assert "no counterpart: tf32: true" in ran.stderr
    assert [source.path for source in load_recipe(tmp_path / "new.yaml").data.train] == ["mine.jsonl"]
    again = CliRunner().invoke(app, ["init", "--from", "axolotl.yml", "--out", "new.yaml"])
    assert isinstance(again.exception, ArgumentError)
    assert CliRunner().invoke(app, ["validate", "new.yaml"]).exit_code == 0


def test_a_secret_is_neither_copied_nor_shown(translated):
    token = "hf_" + "a1" * 17
    _, _, text = translated(AXOLOTL | {"hub_token": token})
    assert token not in text
    with pytest.raises(ArgumentError, match="holds a secret"):
        translated(AXOLOTL | {"datasets": [{"path": f"https://user:{token}@host/rows.jsonl", "type": "alpaca"}]})
