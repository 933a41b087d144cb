"""The command for vLLM and what is refused before it; `tests/engines/test_vllm.py` starts it."""

import dataclasses
import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qlora_cli.errors import ArgumentError, IdentityError, ResourceError
from qlora_cli.model.tuned import find_tuned
from qlora_cli.serve.served_base import served_base, write_served_base
from qlora_cli.serve.vllm import serve_with_vllm
from tests.deploy.models import save_llama, save_run


@pytest.fixture(autouse=True)
def no_vllm(empty_cache, monkeypatch):
    monkeypatch.delenv("QLORA_VLLM_PYTHON", raising=False)
    return empty_cache


@pytest.fixture(scope="module")
def other(tmp_path_factory, base_folder):
    return save_run(tmp_path_factory.mktemp("other"), base_folder, r=12, use_rslora=True)


def printed(capsys, sources, **options):
    serve_with_vllm(sources, is_printed_only=True, **options)
    return capsys.readouterr().out.splitlines()


def test_the_printed_lines_make_what_is_missing_and_start_the_server(run, other, capsys, no_vllm):
    sources = {"a": find_tuned(run.path), "b": find_tuned(other.path)}
    env, merge, serve = printed(capsys, sources, port=8123, api_key_variable="MY_KEY")
    assert env == "qlora env vllm"
    base = served_base(sources["a"]).folder
    assert base.is_relative_to(no_vllm)
    expected = ["qlora", "merge", str(run.path), "--base-only", "--dtype", "float32", "--out", str(base)]
    assert shlex.split(merge) == expected
    assert serve.startswith('VLLM_API_KEY="$MY_KEY" VLLM_NO_USAGE_STATS=1 ')
    words = shlex.split(serve)
    pairs = dict(pairwise(words))
    assert pairs["--model"] == str(base)
    assert (pairs["--host"], pairs["--port"], pairs["--dtype"]) == ("127.0.0.1", "8123", "float32")
    assert (pairs["--max-loras"], pairs["--max-lora-rank"], pairs["--served-model-name"]) == ("2", "16", "base")
    modules = words[words.index("--lora-modules") + 1 :]
    assert modules == [f"a={run.adapter_path}", f"b={other.adapter_path}"]


def test_template_and_end_of_turn_are_those_of_training_and_the_bases_sampling_plays_no_part(run, capsys):
    source = find_tuned(run.path)
    words = shlex.split(printed(capsys, {"a": source})[-1])
    settings = Path(words[words.index("--generation-config") + 1])
    assert json.loads((settings / "generation_config.json").read_text()) == {"eos_token_id": [3]}
    template = Path(words[words.index("--chat-template") + 1]).read_text()
    assert template == (Path(source.model.base_model) / "chat_template.jinja").read_text()


@pytest.mark.slow
def test_the_base_is_written_once_and_known_again_by_its_record(run, base_folder):
    base = served_base(find_tuned(run.path))
    assert not base.is_there
    write_served_base(base)
    assert base.is_there
    record = json.loads((base.folder / "qlora_merge.json").read_text())
    assert (record["adapter_sha256"], record["dtype"]) == (None, "float32")
    original, written = (load_file(folder / "model.safetensors") for folder in (base_folder, base.folder))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert 0 < (original[name] - written[name]).abs().max() < original[name].abs().max()
    (base.folder / "qlora_merge.json").write_text(json.dumps(record | {"base_fingerprint": "another"}))
    assert not base.is_there


def test_a_base_that_was_not_quantized_is_served_as_it_is(tmp_path, base_folder, capsys):
    plain = save_run(tmp_path / "plain", base_folder, quantization="none")
    [_, serve] = printed(capsys, {"a": find_tuned(plain.path)})
    assert f"--model {base_folder} " in serve


def test_options_that_chose_the_base_reach_the_command_that_writes_it(run, tmp_path, base_folder):
    source = find_tuned(run.path)
    moved = tmp_path / "moved"
    moved.symlink_to(base_folder)
    model = source.model.model_copy(update={"base_model": str(moved), "dtype": "bfloat16"})
    arguments = served_base(dataclasses.replace(source, model=model)).arguments
    assert arguments[-4:] == ("--base-model", str(moved), "--set", "model.dtype=bfloat16")


def test_every_reason_is_told_with_its_way_on(run, base_folder, tmp_path):
    dora = save_run(tmp_path / "dora", base_folder, use_dora=True)
    with pytest.raises(ArgumentError) as told:
        serve_with_vllm({"base": find_tuned(run.path), "d": find_tuned(dora.path)})
    first, second = told.value.problems
    assert "the name under which the base is served" in first.text
    assert "DoRA" in second.text
    assert f"`qlora merge {dora.adapter_path} --out FOLDER`" in second.hint


def test_adapters_of_different_bases_are_not_served_together(run, tmp_path):
    elsewhere = save_llama(tmp_path / "base", tie_word_embeddings=True)
    strange = save_run(tmp_path / "strange", elsewhere)
    with pytest.raises(ArgumentError, match="'a' and 's' were trained on different bases"):
        serve_with_vllm({"a": find_tuned(run.path), "s": find_tuned(strange.path)})


def test_a_base_that_was_quantized_otherwise_is_another(run, base_folder, tmp_path):
    fp4 = save_run(tmp_path / "fp4", base_folder, quantization="fp4")
    with pytest.raises(ArgumentError, match="quantized otherwise"):
        serve_with_vllm({"a": find_tuned(run.path), "f": find_tuned(fp4.path)})


def test_another_template_is_another_server(run, other, tmp_path):
    source = find_tuned(other.path)
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    changed = dataclasses.replace(source, model=source.model.model_copy(update={"chat_template": str(template)}))
    with pytest.raises(ArgumentError, match="different chat templates"):
        serve_with_vllm({"a": find_tuned(run.path), "t": changed})


def test_a_base_that_has_changed_is_not_served(tmp_path):
    own = save_llama(tmp_path / "base", tie_word_embeddings=False)
    run = save_run(tmp_path / "run", own)
    path = own / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, metadata=metadata)
    with pytest.raises(IdentityError, match="its weights have changed"):
        serve_with_vllm({"a": find_tuned(run.path)})


def test_without_vllm_one_line_says_what_makes_it(run):
    with pytest.raises(ResourceError, match="not installed") as told:
        serve_with_vllm({"a": find_tuned(run.path)})
    assert "`qlora env vllm`" in told.value.problems[0].hint
