"""Whatever the user names (run, adapter, checkpoint, model folder) is loaded as it was trained."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from qlora_cli.api import generate
from qlora_cli.errors import ArgumentError, IdentityError, RecipeError
from qlora_cli.model.base_choice import BaseChoice
from qlora_cli.model.tuned import find_tuned, load_tuned
from qlora_cli.recipe.schema import QuantizationSection, Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.model.foreign_adapters import change_config, lora, plain_base, save_adapter_of
from tests.model.packed_bases import packed_base
from tests.tiny_models import CHATML, byte_tokenizer, tiny_llama


def train(folder, base, data, *, steps=2, chat_template=None, **lora) -> RunDirectory:
    """A short NF4 run; one step of two leaves it unfinished."""
    values = {
        "name": "short",
        "model": {"base_model": str(base), "chat_template": chat_template},
        "quantization": {},
        "lora": {"r": 4, **lora},
        "data": {"train": str(data), "max_length": 64},
        "training": {"max_steps": 2, "gradient_accumulation_steps": 1, "learning_rate": 0.1},
    }
    run = RunDirectory(folder)
    train_recipe(Recipe.model_validate(values), run, TrainOptions(stop_after=steps))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_base, chat_data):
    return train(tmp_path_factory.mktemp("tuned") / "runs" / "short", tiny_base, chat_data)


def adapter_values(model: PeftModel) -> list[float]:
    return sorted(parameter.double().sum().item() for name, parameter in model.named_parameters() if "lora_" in name)


def test_a_run_directory_gives_its_recipe_base_and_adapter(run, tiny_base):
    source = find_tuned(run.path)
    assert (source.run, source.adapter, source.base_source) == (run, run.adapter_path, None)
    assert source.model.base_model == str(tiny_base)
    assert source.quantization is not None
    assert source.recipe.name == "short"


def test_without_a_path_it_is_the_latest_run(run, monkeypatch):
    monkeypatch.chdir(run.path.parent.parent)
    assert find_tuned(None).adapter.resolve() == run.adapter_path


def test_the_adapter_folder_of_a_run_still_knows_its_run(run):
    assert find_tuned(run.adapter_path).run == run
    assert find_tuned(run.adapter_path).quantization is not None


def test_a_checkpoint_of_a_run_is_a_tuned_model_too(run):
    checkpoint = run.checkpoints_path / "step-000002"
    source = find_tuned(checkpoint)
    assert (source.run, source.adapter) == (run, checkpoint)


def test_a_copy_of_the_adapter_knows_what_it_was_trained_on(run, tiny_base, tmp_path):
    copy = shutil.copytree(run.adapter_path, tmp_path / "adapter")
    source, original = find_tuned(copy), find_tuned(run.path)
    assert (source.run, source.recipe, source.adapter) == (None, None, copy)
    assert source.quantization == original.quantization
    assert source.model.base_model == str(tiny_base)
    assert source.tokenizer == copy
    assert source.fingerprints == {name: original.fingerprints[name] for name in ("base", "tokenizer", "template")}
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(load_tuned(copy).model(ids).logits, load_tuned(run.path).model(ids).logits)


def test_an_adapter_made_elsewhere_names_its_base_itself(tiny_base, tmp_path):
    save_adapter_of(tiny_base, lora(), tmp_path)
    change_config(tmp_path, revision="v1")
    source = find_tuned(tmp_path)
    assert (source.run, source.quantization, source.tokenizer) == (None, None, None)
    assert (source.model.base_model, source.model.revision) == (str(tiny_base), "v1")
    assert isinstance(load_tuned(tmp_path).model, PeftModel)


def test_every_way_to_an_adapter_of_a_run_leads_to_the_run(run, tmp_path, monkeypatch):
    expected = replace(find_tuned(run.path), folder=Path())
    (tmp_path / "run").symlink_to(run.path)
    (tmp_path / "adapter").symlink_to(run.adapter_path)
    for place, name in (
        (run.path, "."),
        (run.path, "adapter"),
        (run.adapter_path, "."),
        (run.adapter_path, ".."),
        (run.checkpoints_path, "../adapter"),
        (tmp_path, "adapter"),
        (tmp_path, "run"),
        (tmp_path, "run/adapter"),
    ):
        monkeypatch.chdir(place)
        found = find_tuned(Path(name))
        paths = {"run": found.run.path, "adapter": found.adapter, "tokenizer": found.tokenizer}
        here = {key: path.resolve() for key, path in paths.items()}
        assert here == {"run": run.path, "adapter": run.adapter_path, "tokenizer": run.adapter_path}, name
        kind = replace(found.kind, folder=run.adapter_path)
        same = replace(found, **here | {"run": run, "kind": kind, "folder": Path()})
        assert same == expected, name


def test_the_revision_that_the_manifest_records_is_the_one_that_is_used(tmp_path, tiny_base, chat_data):
    unpinned = train(tmp_path / "run", tiny_base, chat_data)
    manifest = json.loads(unpinned.manifest_path.read_text())
    manifest["base"]["revision"] = "0" * 40
    unpinned.manifest_path.write_text(json.dumps(manifest))
    assert find_tuned(unpinned.path).model.revision == "0" * 40


COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def hub(tmp_path, tiny_base, monkeypatch):
    """A cache of the Hub with a base whose weights differ from one revision to the other."""
    cache = tmp_path / "hub"
    entry = cache / "models--org--base"
    (entry / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(COMMITS.items()):
        shutil.copytree(tiny_base, entry / "snapshots" / commit)
        tiny_llama(259, seed=seed).save_pretrained(entry / "snapshots" / commit)
        (entry / "refs" / name).write_text(commit)
    for module in [module for name, module in sys.modules.items() if name.startswith(("huggingface_hub", "transf"))]:
        if "HF_HUB_CACHE" in vars(module):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))
    return entry


def test_the_revision_of_a_foreign_adapter_is_honoured(hub, tiny_base, tmp_path):
    save_adapter_of(hub / "snapshots" / COMMITS["v1"], lora(), tmp_path / "adapter")
    change_config(tmp_path / "adapter", base_model_name_or_path="org/base", revision="v1")
    ids = torch.arange(16)[None]
    with torch.no_grad():
        base = plain_base(hub / "snapshots" / COMMITS["v1"])
        expected = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
        found = load_tuned(tmp_path / "adapter").model(ids).logits
        other = load_tuned(find_tuned(tmp_path / "adapter", BaseChoice(revision="main"))).model(ids).logits
    assert torch.equal(found, expected)
    assert not torch.allclose(other, expected, atol=1e-3)


def test_a_run_writes_the_commit_that_it_used_and_stays_with_it(hub, tmp_path, chat_data):
    run = train(tmp_path / "run", "org/base", chat_data)
    assert json.loads((run.adapter_path / "adapter_config.json").read_text())["revision"] == COMMITS["main"]
    (hub / "refs/main").write_text(COMMITS["v1"])  # the branch moves on
    for path in (run.path, shutil.copytree(run.adapter_path, tmp_path / "copy")):
        assert find_tuned(path).model.revision == COMMITS["main"]
        assert load_tuned(path).source.model.base_model == "org/base"


EDITS = {
    "chat template": ("chat_template.jinja", lambda text: text + " "),
    "tokenizer": ("tokenizer.json", lambda text: text.replace("<|im_start|>", "<|im_begin|>")),
}


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("is_copy", [False, True])
def test_an_edited_file_of_the_adapter_is_noticed(run, tmp_path, what, is_copy):
    whole = shutil.copytree(run.path, tmp_path / "run")
    adapter = shutil.copytree(run.adapter_path, tmp_path / "copy") if is_copy else whole / "adapter"
    name, edit = EDITS[what]
    (adapter / name).write_text(edit((adapter / name).read_text()))
    with pytest.raises(IdentityError, match=f"the {what} is not the one") as caught:
        load_tuned(adapter)
    assert caught.value.problems[0].place == str(adapter)


def test_the_template_of_the_run_is_used_whatever_became_of_the_recipes_file(tmp_path, tiny_base, chat_data):
    template = tmp_path / "mine.jinja"
    template.write_text(CHATML.replace("<|im_end|>", "<|im_end|>!"))
    run = train(tmp_path / "run", tiny_base, chat_data, chat_template=str(template))
    template.unlink()
    assert "<|im_end|>!" in load_tuned(run.path).tokenizer.chat_template


def test_a_template_that_was_edited_since_is_noticed_where_none_was_saved(tmp_path, tiny_base, chat_data):
    template = tmp_path / "mine.jinja"
    template.write_text(CHATML)
    run = train(tmp_path / "run", tiny_base, chat_data, steps=1, chat_template=str(template))
    template.write_text(CHATML + "!")
    with pytest.raises(IdentityError, match="the chat template is not the one") as caught:
        load_tuned(run.checkpoints_path / "step-000001")
    assert caught.value.problems[0].place == str(template)


def test_a_token_that_was_added_beside_a_foreign_adapter_is_used(tiny_base, tmp_path, capsys):
    save_adapter_of(tiny_base, lora(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(tmp_path)
    assert load_tuned(tmp_path).tokenizer("<think>").input_ids == [259]
    assert (
        "1 of the tokenizer's tokens have embeddings in neither base nor adapter, such as '<think>'"
        in capsys.readouterr().err
    )


def test_a_text_with_a_token_that_has_no_embedding_is_refused(tiny_base, tmp_path):
    save_adapter_of(tiny_base, lora(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="makes token 259, '<think>'"):
        generate("<think>", tmp_path, max_new_tokens=4)
    assert generate("think", tmp_path, max_new_tokens=4).num_new_tokens == 4


def test_a_base_that_has_moved_is_told_as_moved_and_can_be_named(tmp_path, tiny_base, chat_data):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    run = train(tmp_path / "run", base, chat_data)
    copy = shutil.copytree(run.adapter_path, tmp_path / "copy")
    base.rename(tmp_path / "moved")
    for path in (run.path, copy):
        with pytest.raises(IdentityError, match="it has moved") as caught:
            load_tuned(path)
        assert "--base-model FOLDER" in caught.value.problems[0].hint
        assert load_tuned(find_tuned(path, BaseChoice(str(tmp_path / "moved")))).source.adapter


def test_another_base_than_that_of_training_is_refused_by_its_weights(run, tmp_path):
    tiny_llama(259, seed=3).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(IdentityError, match="its weights have changed"):
        load_tuned(find_tuned(run.path, BaseChoice(str(tmp_path))))


def test_a_run_is_not_loaded_in_another_storage_than_it_was_trained_on(run):
    with pytest.raises(IdentityError, match="stored as nf4, not int8") as caught:
        find_tuned(run.path, BaseChoice(quantization="int8"))
    assert "--onto original" in caught.value.problems[0].hint
    assert find_tuned(run.path, BaseChoice(quantization="nf4")).quantization is not None


def test_the_home_directory_may_be_written_as_a_tilde(run, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_base.parent))
    save_adapter_of(tiny_base, lora(), tmp_path)
    change_config(tmp_path, base_model_name_or_path=f"~/{tiny_base.name}")
    assert find_tuned(tmp_path).model.base_model == str(tiny_base)
    assert find_tuned(run.path, BaseChoice(f"~/{tiny_base.name}")).model.base_model == str(tiny_base)


def test_after_pissa_a_copy_of_the_adapter_stands_on_the_residual_of_its_run(tmp_path, tiny_base, chat_data):
    run = train(tmp_path / "run", tiny_base, chat_data, init_lora_weights="pissa")
    copy = shutil.copytree(run.adapter_path, tmp_path / "copy")
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(load_tuned(copy).model(ids).logits, load_tuned(run.path).model(ids).logits)
    assert find_tuned(copy).is_base_apart
    run.residual_path.rename(tmp_path / "elsewhere")
    with pytest.raises(IdentityError, match="stands on PiSSA's residual"):
        load_tuned(copy)


@pytest.mark.parametrize("kind", ["fp8", "mxfp4", "nf4"])
def test_what_a_stored_base_is_needs_no_recipe(tmp_path, kind):
    """The adapter folder says nothing of it, and there is one way to load such a base."""
    if kind == "nf4":
        _, plain = packed_base("fp8", tmp_path)
        AutoModelForCausalLM.from_pretrained(
            plain, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        ).save_pretrained(tmp_path / "packed-by-bitsandbytes")
        folder = tmp_path / "packed-by-bitsandbytes"
    else:
        folder, plain = packed_base(kind, tmp_path)
    save_adapter_of(plain, lora(), tmp_path / "adapter")
    change_config(tmp_path / "adapter", base_model_name_or_path=str(folder))
    source = find_tuned(tmp_path / "adapter")
    assert source.quantization == (QuantizationSection(double_quant=False) if kind == "nf4" else None)
    for found in (source, find_tuned(folder)):
        assert found.model.dequantize == (kind != "nf4")


def test_a_model_folder_is_loaded_without_an_adapter(tiny_base):
    tuned = load_tuned(tiny_base)
    assert tuned.source.adapter is None
    assert not isinstance(tuned.model, PeftModel)
    assert not tuned.model.training


def test_an_empty_folder_is_none_of_them(tmp_path):
    with pytest.raises(ArgumentError, match="not a run directory, an adapter folder or a model folder"):
        find_tuned(tmp_path)


def test_an_unfinished_run_says_how_to_finish_it(tmp_path, tiny_base, chat_data):
    unfinished = train(tmp_path / "run", tiny_base, chat_data, steps=1)
    with pytest.raises(ArgumentError, match="is not finished") as caught:
        find_tuned(unfinished.path)
    assert "--resume" in caught.value.problems[0].hint


NAMES_NO_BASE = ("{", "[]", "{}", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": 7}')


@pytest.mark.parametrize("config", NAMES_NO_BASE)
def test_an_adapter_config_that_names_no_base_is_told_with_its_place(tmp_path, config):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(IdentityError) as caught:
        find_tuned(tmp_path)
    assert caught.value.problems[0].place == str(tmp_path / "adapter_config.json")
    assert caught.value.problems[0].hint


def test_the_loaded_model_is_quantized_as_in_training_and_holds_the_trained_values(run):
    tuned = load_tuned(run.path)
    layer = tuned.model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    assert isinstance(layer, bnb.nn.Linear4bit)
    stored = load_file(run.adapter_path / "adapter_model.safetensors")
    assert adapter_values(tuned.model) == sorted(tensor.double().sum().item() for tensor in stored.values())
    assert not tuned.model.training


def test_after_pissa_the_residual_stands_in_for_the_base(tmp_path, tiny_base, chat_data):
    run = train(tmp_path / "run", tiny_base, chat_data, init_lora_weights="pissa")
    assert find_tuned(run.path).base_source == str(run.residual_path)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        whole = load_tuned(run.path).model(ids).logits
        shutil.rmtree(run.residual_path)
    assert whole.isfinite().all()
    with pytest.raises(IdentityError, match="stands on PiSSA's residual"):
        load_tuned(run.path)


def test_a_run_whose_base_was_replaced_is_refused(tmp_path, tiny_base, chat_data):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    run = train(tmp_path / "run", base, chat_data)
    manifest = json.loads(run.manifest_path.read_text())
    manifest["base"]["fingerprint"] = "0" * 64
    run.manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(IdentityError, match="its weights have changed") as caught:
        load_tuned(run.path)
    assert caught.value.exit_code == 3
