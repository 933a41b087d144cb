"""What leaves this machine: the files on the list for the kind of folder, and no others."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from qlora_cli import merge, push
from qlora_cli.errors import ArgumentError, IdentityError

REPO = "ada/sums"


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made.path, tmp_path / "run")
    return tmp_path / "run"


def names(path, **options):
    return [file.name for file in push(path, REPO, dry_run=True, **options).files]


def model_folder(folder, **files):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_states_logs_rows_and_notes_stay_here(run):
    adapter = run / "adapter"
    for name in (
        "optimizer.pt",
        "optimizer.safetensors",
        "training_args.bin",
        "notes.txt",
        ".env",
        "log.txt",
        "a.parquet",
    ):
        (adapter / name).write_text("x")
    (adapter / "checkpoint-5").mkdir()
    (adapter / "checkpoint-5" / "adapter_model.safetensors").write_text("x")
    pushed = push(run, REPO, dry_run=True)
    assert {file.name for file in pushed.files} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert set(pushed.left_here) >= {"optimizer.pt", "notes.txt", ".env", "checkpoint-5/", "training_args.bin"}


def test_a_link_out_of_the_folder_is_not_followed(run, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (run / "adapter" / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ArgumentError, match="is a link out of the folder"):
        names(run)


@pytest.mark.parametrize("name", ["adapter_config.json", "chat_template.jinja", "tokenizer.json"])
def test_a_file_with_a_secret_stops_the_push_and_the_secret_is_not_printed(run, name):
    secret = "hf_" + "Xy3" * 12
    path = run / "adapter" / name
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**before, "note": secret}))
    with pytest.raises(ArgumentError) as raised:
        names(run)
    assert f"{name}: holds a secret: Hugging Face token" in str(raised.value)
    assert secret not in str(raised.value)


def test_a_secret_in_the_head_of_the_weights_is_found(tmp_path):
    folder = model_folder(tmp_path / "model")
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors", metadata={"by": "hf_" + "Xy3" * 12})
    with pytest.raises(ArgumentError, match="holds a secret"):
        names(folder)


def test_a_card_that_somebody_wrote_is_looked_through_too(run):
    (run / "adapter" / "README.md").write_text("# Mine\nlog in with hf_" + "Xy3" * 12)
    with pytest.raises(ArgumentError, match=r"README\.md: holds a secret"):
        names(run)


def test_a_shard_that_is_missing_is_named(tmp_path):
    index = json.dumps({"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}})
    folder = model_folder(tmp_path / "model", model__safetensors__index__json=index)
    with pytest.raises(ArgumentError, match=r"'model-2\.safetensors' is missing, which model\.safetensors"):
        names(folder)


def test_weights_that_changed_since_they_were_proved_are_refused(run):
    with (run / "adapter" / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(IdentityError, match="has changed since qlora wrote it"):
        names(run)


def test_a_merged_model_brings_its_figures_and_its_run(run, tmp_path):
    merge(run, base_model=json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"])
    pushed = push(run / "merged", REPO, dry_run=True, base_model="org/llama-1b")
    assert "model.safetensors" in {file.name for file in pushed.files}
    assert "| merged weights |" in pushed.card
    assert "- merged onto: the dequantized base, in float32" in pushed.card
    assert "| held-out · loss |" in pushed.card
    assert "base_model_relation: finetune" in pushed.card
    assert "The base's own card" not in pushed.card  # merge copies it, and nobody wrote it for this model
    shutil.copytree(run / "merged", tmp_path / "elsewhere")
    assert "| held-out · loss |" not in push(tmp_path / "elsewhere", REPO, dry_run=True).card
    assert "| held-out · loss |" in push(tmp_path / "elsewhere", REPO, dry_run=True, of_run=run).card
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(IdentityError, match="was not made from the adapter that run"):
        push(tmp_path / "elsewhere", REPO, dry_run=True, of_run=run)


def test_gguf_files_and_their_modelfile_go_as_they_are(tmp_path):
    folder = tmp_path / "gguf"
    folder.mkdir()
    for name in ("sums-q4_k_m.gguf", "Modelfile", "imatrix.dat"):
        (folder / name).write_bytes(b"GGUF")
    pushed = push(folder, REPO, dry_run=True)
    assert {file.name for file in pushed.files} == {"README.md", "Modelfile", "sums-q4_k_m.gguf"}
    assert pushed.kind == "gguf"


@pytest.mark.parametrize(
    ("part", "text"),
    [("residual", "stands on PiSSA's residual"), ("integers", "stands on a base in integers of its own")],
)
def test_an_adapter_on_a_base_that_lies_in_its_run_is_refused(run, part, text):
    (run / "adapter" / "qlora_adapter.json").write_text(json.dumps({part: f"../{part}", "model": {}}))
    with pytest.raises(ArgumentError, match=text):
        names(run)


def test_a_run_that_is_not_finished_has_nothing_to_push(run):
    shutil.rmtree(run / "adapter")
    with pytest.raises(ArgumentError, match="is not finished: it has no adapter yet"):
        names(run)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="is not a run directory, an adapter or a model folder"):
        names(tmp_path)
