import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.deploy.model_folder import write_config, write_generation_settings, write_tokenizer
from qlora_cli.model.other_files import copy_other_files


@pytest.fixture
def base(llama_folder, tmp_path):
    """A base that a test may change."""
    return shutil.copytree(llama_folder, tmp_path / "base")


def saved_settings(base, settings):
    (base / "generation_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    write_generation_settings(base, model, tokenizer, Renderer(tokenizer))
    return json.loads((base / "generation_config.json").read_text())


@pytest.mark.parametrize("eos_token_id", [None, 0, [0]])
def test_end_of_turn_joins_what_the_base_stops_at(base, eos_token_id):
    settings = saved_settings(base, {"eos_token_id": eos_token_id})
    assert settings["eos_token_id"] == ([3] if eos_token_id is None else [0, 3])


def test_a_base_that_stops_there_already_keeps_its_own_form(base):
    assert saved_settings(base, {"eos_token_id": 3})["eos_token_id"] == 3


def test_all_other_settings_are_the_bases(base):
    own = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "top_k": 20, "pad_token_id": 2}
    assert saved_settings(base, own) == own | {"eos_token_id": [3]}
    assert AutoModelForCausalLM.from_pretrained(base).generation_config.top_k == 20


def test_a_base_without_settings_gets_those_of_its_config(base):
    (base / "generation_config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(base)
    write_generation_settings(base, AutoModelForCausalLM.from_pretrained(base), tokenizer, Renderer(tokenizer))
    settings = AutoModelForCausalLM.from_pretrained(base).generation_config
    assert (settings.eos_token_id, settings.pad_token_id) == (3, tokenizer.pad_token_id)


def test_a_base_without_template_gets_the_one_that_training_used(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    renderer = Renderer(tokenizer)
    write_tokenizer(base, tokenizer, renderer, trust_code=False)
    assert AutoTokenizer.from_pretrained(base).chat_template == renderer.template


def test_the_bases_own_tokenizer_files_stay_as_they_are(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    path = base / "tokenizer_config.json"
    older = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    older.pop("extra_special_tokens", None)
    path.write_text(json.dumps(older))
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    write_tokenizer(base, tokenizer, Renderer(tokenizer), trust_code=False)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_a_template_in_the_older_place_is_the_trained_one_too(base):
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ 'old' }}"}))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "model") + " "
    renderer = Renderer(tokenizer)
    write_tokenizer(base, tokenizer, renderer, trust_code=False)
    assert json.loads(path.read_text())["chat_template"] == renderer.template
    assert (base / "chat_template.jinja").read_text() == renderer.template


def test_an_added_token_is_saved_and_the_class_stays_the_bases(base):
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<think>"])
    write_tokenizer(base, tokenizer, Renderer(tokenizer), trust_code=False)
    assert json.loads(path.read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(base)("<think>").input_ids[-1] == len(tokenizer) - 1


def test_files_of_the_base_are_copied_and_weights_that_nobody_merged_are_named(base, tmp_path):
    (base / "modeling_own.py").write_text("VALUE = 1\n")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (base / "rows").mkdir()
    (base / "rows" / "train.jsonl").write_text("{}")
    (tmp_path / "secret.txt").write_text("a secret")
    (base / "notes.txt").symlink_to(tmp_path / "secret.txt")
    (base / "consolidated.safetensors").write_bytes(b"old weights")
    (base / ".cache").mkdir()
    (base / ".cache" / "download.json").write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    assert copy_other_files(base, out) == ["consolidated.safetensors", "notes.txt", "rows"]
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"modeling_own.py", "additional_chat_templates/tools.jinja", "config.json", "tokenizer.json"} <= names
    assert not any(part in name for name in names for part in ("safetensors", ".cache", "notes", "rows"))


def test_links_into_the_cache_of_the_hub_are_followed(base, tmp_path):
    snapshot = tmp_path / "models--org--base" / "snapshots" / "main"
    blobs = tmp_path / "models--org--base" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    shutil.copy(base / "config.json", blobs / "1234")
    (snapshot / "config.json").symlink_to(Path("../../blobs/1234"))
    out = tmp_path / "out"
    out.mkdir()
    assert copy_other_files(snapshot, out) == []
    assert not (out / "config.json").is_symlink()
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_older_libraries_find_the_class_and_the_special_tokens(base):
    path = base / "tokenizer_config.json"
    own = json.loads(path.read_text())
    path.write_text(
        json.dumps(own | {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_start|>"]})
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = tokenizer("<|im_start|>a").input_ids
    write_tokenizer(base, tokenizer, Renderer(tokenizer), trust_code=False)
    settings = json.loads(path.read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in settings
    again = AutoTokenizer.from_pretrained(base)
    assert again("<|im_start|>a").input_ids == expected
    assert "<|im_start|>" in again.all_special_tokens


def test_older_libraries_find_the_rotation(base):
    path = base / "config.json"
    content = json.loads(path.read_text())
    content["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    content["rope_parameters"] |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    content["rope_parameters"]["original_max_position_embeddings"] = 128
    path.write_text(json.dumps(content))
    before = AutoConfig.from_pretrained(base).to_dict()
    write_config(base, {})
    written = json.loads(path.read_text())
    assert written["rope_theta"] == 500000.0
    assert written["rope_scaling"] == {
        key: value for key, value in content["rope_parameters"].items() if "theta" not in key
    }
    assert AutoConfig.from_pretrained(base).to_dict()["rope_parameters"] == before["rope_parameters"]


def test_keys_go_where_the_config_has_them(base):
    (base / "config.json").write_text(
        json.dumps({"text_config": {"tie_word_embeddings": True}, "quantization_config": 1})
    )
    write_config(base, {"tie_word_embeddings": False, "quantization_config": None})
    assert json.loads((base / "config.json").read_text()) == {"text_config": {"tie_word_embeddings": False}}
