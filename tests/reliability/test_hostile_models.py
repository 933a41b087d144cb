"""Bases and adapters that were made to run code or to reach out of their folder do neither, and are one line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.reliability.harness.hostile import REFUSED, Bomb, Place, change_json, code, nested, state_with_a_bomb


def only_pickles(place: Place) -> None:
    (place.base / "model.safetensors").unlink()
    torch.save(state_with_a_bomb(place.canary), place.base / "pytorch_model.bin")


def only_a_raw_pickle(place: Place) -> None:
    (place.base / "model.safetensors").unlink()
    (place.base / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(place.canary)))


def only_sharded_pickles(place: Place) -> None:
    only_pickles(place)
    (place.base / "pytorch_model.bin").rename(place.base / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}}
    (place.base / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def pickles_beside_safetensors(place: Place) -> None:
    torch.save(state_with_a_bomb(place.canary), place.base / "pytorch_model.bin")
    torch.save(state_with_a_bomb(place.canary), place.base / "training_args.bin")


def adapter_in_the_base(place: Place) -> None:
    for path in place.adapter.iterdir():
        (place.base / path.name).write_bytes(path.read_bytes())


def pickled_adapter_in_the_base(place: Place) -> None:
    adapter_in_the_base(place)
    (place.base / "adapter_model.safetensors").unlink()
    torch.save(state_with_a_bomb(place.canary), place.base / "adapter_model.bin")


def model_code(place: Place, **config: str) -> None:
    (place.base / "mine.py").write_text(code(place.canary))
    auto_map = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    change_json(place.base / "config.json", auto_map=auto_map, **config)


def code_for_a_new_kind_of_model(place: Place) -> None:
    model_code(place, model_type="mine")


def code_for_a_known_kind_of_model(place: Place) -> None:
    model_code(place)


def code_of_another_repository(place: Place) -> None:
    names = {"AutoConfig": "evil/repo--mine.MyConfig", "AutoModelForCausalLM": "evil/repo--mine.MyModel"}
    change_json(place.base / "config.json", auto_map=names, model_type="mine")


def tokenizer_code(place: Place) -> None:
    (place.base / "mine.py").write_text(code(place.canary))
    auto_map = {"AutoTokenizer": ["mine.MyTokenizer", "mine.MyTokenizer"]}
    change_json(place.base / "tokenizer_config.json", tokenizer_class="MyTokenizer", auto_map=auto_map)


def tokenizer_class_with_a_path(place: Place) -> None:
    change_json(place.base / "tokenizer_config.json", tokenizer_class="os.system")


def generation_code(place: Place) -> None:
    (place.base / "custom_generate").mkdir()
    (place.base / "custom_generate" / "generate.py").write_text(code(place.canary))


def attention_from_the_hub(place: Place) -> None:
    change_json(place.base / "config.json", _attn_implementation="evil/kernels", attn_implementation="evil/kernels")


def unknown_quantization(place: Place) -> None:
    change_json(place.base / "config.json", quantization_config={"quant_method": "evil", "modules": "os.system"})


def index_that_leads_out(place: Place) -> None:
    (place.base / "model.safetensors").rename(place.outside / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../../outside/model.safetensors"}}
    (place.base / "model.safetensors.index.json").write_text(json.dumps(index))


def fewer_weights_than_layers(place: Place) -> None:
    change_json(place.base / "config.json", num_hidden_layers=3)


def weights_of_another_shape(place: Place) -> None:
    change_json(place.base / "config.json", hidden_size=128)


def words_for_numbers(place: Place) -> None:
    change_json(place.base / "config.json", hidden_size="large")


def a_list_for_a_config(place: Place) -> None:
    (place.base / "config.json").write_text("[1]")


def cut_off_weights(place: Place) -> None:
    content = (place.base / "model.safetensors").read_bytes()
    (place.base / "model.safetensors").write_bytes(content[: len(content) // 2])


def weights_with_a_huge_header(place: Place) -> None:
    (place.base / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")


def weights_with_a_deep_header(place: Place) -> None:
    header = nested().encode()
    (place.base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def unknown_tokenizer_model(place: Place) -> None:
    change_json(place.base / "tokenizer.json", model={"type": "Evil"})


def tokenizer_with_a_broken_pattern(place: Place) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
    change_json(place.base / "tokenizer.json", pre_tokenizer=split)


IGNORED = (
    pickles_beside_safetensors,
    code_for_a_known_kind_of_model,
    tokenizer_class_with_a_path,
    generation_code,
    attention_from_the_hub,
)
"""Harmless, since nobody reads them."""

REFUSED_BASES: tuple[Callable[[Place], None], ...] = (
    only_pickles,
    only_a_raw_pickle,
    only_sharded_pickles,
    adapter_in_the_base,
    pickled_adapter_in_the_base,
    code_for_a_new_kind_of_model,
    code_of_another_repository,
    tokenizer_code,
    index_that_leads_out,
    fewer_weights_than_layers,
    weights_of_another_shape,
    words_for_numbers,
    a_list_for_a_config,
    cut_off_weights,
    weights_with_a_huge_header,
    weights_with_a_deep_header,
    unknown_tokenizer_model,
    tokenizer_with_a_broken_pattern,
    unknown_quantization,
)


def name_of(plant: Callable[[Place], None]) -> str:
    return plant.__name__


@pytest.mark.parametrize("plant", IGNORED, ids=name_of)
def test_what_a_base_brings_along_is_not_run(place, plant):
    plant(place)
    ended = place.qlora("train", str(place.write_recipe()))
    assert ended.exit_code == 0, ended.said


@pytest.mark.parametrize("plant", REFUSED_BASES, ids=name_of)
def test_a_base_that_would_do_harm_is_refused_in_one_line(place, plant):
    plant(place)
    ended = place.qlora("train", str(place.write_recipe()))
    assert ended.exit_code in REFUSED, ended.said
    assert "hint: " in ended.said


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "index"]
)
def test_json_that_is_nested_beyond_sense_is_refused_in_one_line(place, name):
    if name == "index":
        (place.base / "model.safetensors").rename(place.base / "model-00001-of-00001.safetensors")
        name = "model.safetensors.index.json"
    (place.base / name).write_text(nested())
    ended = place.qlora("train", str(place.write_recipe()))
    assert ended.exit_code in REFUSED, ended.said


@pytest.mark.parametrize("plant", [only_pickles, only_a_raw_pickle, only_sharded_pickles], ids=name_of)
def test_code_in_a_pickle_is_not_run_where_pickles_are_allowed(place, plant):
    plant(place)
    ended = place.qlora("train", str(place.write_recipe(model={"allow_pickle": True})))
    assert ended.exit_code in REFUSED, ended.said


def honest_pickle(place: Place) -> Path:
    from safetensors.torch import load_file

    weights = load_file(place.base / "model.safetensors")
    (place.base / "model.safetensors").unlink()
    torch.save(weights, place.base / "pytorch_model.bin")
    return place.write_recipe(model={"allow_pickle": True})


def test_honest_pickled_weights_train_where_they_are_allowed(place):
    assert place.qlora("train", str(place.write_recipe())).exit_code == 0
    trained = (place.run / "adapter" / "adapter_model.safetensors").read_bytes()
    recipe = honest_pickle(place)
    assert place.qlora("train", str(recipe), "--overwrite").exit_code == 0
    assert (place.run / "adapter" / "adapter_model.safetensors").read_bytes() == trained


def test_allowing_pickles_beside_safetensors_is_refused_since_it_does_nothing(place):
    ended = place.qlora("train", str(place.write_recipe(model={"allow_pickle": True})))
    assert ended.exit_code == 2
    assert "'model.allow_pickle' has no effect" in ended.said


def pickled_adapter(place: Place) -> None:
    (place.adapter / "adapter_model.safetensors").unlink()
    torch.save(state_with_a_bomb(place.canary), place.adapter / "adapter_model.bin")


def pickle_beside_the_adapter(place: Place) -> None:
    torch.save(state_with_a_bomb(place.canary), place.adapter / "adapter_model.bin")


def change_adapter(**values: object) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        change_json(place.adapter / "adapter_config.json", **values)

    return plant


def module_to_import(place: Place) -> None:
    (place.here / "evil.py").write_text(code(place.canary))
    change_json(place.adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil")


def library_to_import(place: Place) -> None:
    (place.here / "evil.py").write_text(code(place.canary))
    mapping = {"base_model_class": "MyModel", "parent_library": "evil"}
    change_json(place.adapter / "adapter_config.json", auto_mapping=mapping)


def deep_adapter_config(place: Place) -> None:
    (place.adapter / "adapter_config.json").write_text(nested())


def cut_off_adapter(place: Place) -> None:
    (place.adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 50)


def adapter_without_its_weights(place: Place) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(place.adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, place.adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("plant", [pickle_beside_the_adapter, library_to_import], ids=name_of)
def test_what_an_adapter_brings_along_is_not_run(place, plant, monkeypatch):
    monkeypatch.syspath_prepend(place.here)
    plant(place)
    ended = place.qlora("generate", str(place.adapter), "--prompt", "hi", "--max-new-tokens", "2")
    assert ended.exit_code == 0, ended.said


@pytest.mark.parametrize(
    "plant",
    [
        pickled_adapter,
        module_to_import,
        deep_adapter_config,
        cut_off_adapter,
        adapter_without_its_weights,
        change_adapter(base_model_name_or_path="../../outside"),
        change_adapter(base_model_name_or_path=["base"]),
        change_adapter(peft_type="EVIL"),
        change_adapter(peft_type="PROMPT_TUNING"),
        change_adapter(r="large"),
        change_adapter(target_modules="(q+)+$"),
    ],
)
def test_an_adapter_that_would_do_harm_is_refused_in_one_line(place, plant, monkeypatch):
    monkeypatch.syspath_prepend(place.here)
    plant(place)
    ended = place.qlora("generate", str(place.adapter), "--prompt", "hi", "--max-new-tokens", "2")
    assert ended.exit_code in REFUSED, ended.said


@pytest.mark.parametrize("command", ["train", "plan"])
def test_trust_in_a_repositorys_code_does_not_reach_to_another_repository(place, command):
    code_of_another_repository(place)
    ended = place.qlora(command, str(place.write_recipe(model={"trust_remote_code": True})))
    assert ended.exit_code == 2
    assert "'evil/repo'" in ended.said


def test_trust_in_code_needs_the_revision_that_was_read(place):
    model = {"base_model": "org/name", "trust_remote_code": True}
    assert "'model.trust_remote_code'" in place.qlora("validate", str(place.write_recipe(model=model))).said
    assert place.qlora("validate", str(place.write_recipe(model={**model, "revision": "0" * 40}))).exit_code == 0


COMMANDS = {
    "train": ("train", "recipe.yaml"),
    "validate": ("validate", "recipe.yaml"),
    "plan": ("plan", "recipe.yaml"),
    "data check": ("data", "check", "recipe.yaml"),
    "data show": ("data", "show", "recipe.yaml"),
    "generate with the adapter": ("generate", "made-elsewhere/adapter", "--prompt", "hi", "--max-new-tokens", "1"),
    "generate with the base": ("generate", "base", "--prompt", "hi", "--max-new-tokens", "1"),
    "eval": ("eval", "made-elsewhere/adapter", "--data", "sums.jsonl"),
    "merge": ("merge", "made-elsewhere/adapter", "--out", "runs/merged"),
    "export": ("export", "made-elsewhere/adapter", "--out", "runs/exported"),
}


@pytest.mark.torture
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("plant", [*IGNORED, *REFUSED_BASES, pickled_adapter, pickle_beside_the_adapter], ids=name_of)
def test_no_command_runs_what_a_base_or_an_adapter_brings_along(place, plant, command):
    plant(place)
    place.write_recipe()
    ended = place.qlora(*COMMANDS[command])
    assert ended.exit_code in (0, 4, *REFUSED), ended.said
