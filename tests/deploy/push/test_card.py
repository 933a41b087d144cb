"""The card says what was recorded and nothing else, and a card that somebody wrote is the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from qlora_cli import push
from qlora_cli.deploy.push.card import is_replaceable
from qlora_cli.deploy.push.folder import PushedFolder
from qlora_cli.deploy.push.head import head
from qlora_cli.errors import ArgumentError
from qlora_cli.report.record import RunRecord
from tests.deploy.models import load_base, with_adapter
from tests.deploy.push.conftest import SECRET_ROW
from tests.hub_server import head_faults

REPO = "ada/sums"


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made.path, tmp_path / "run")
    return tmp_path / "run"


def card_of(path, **options):
    return push(path, REPO, dry_run=True, **options).card


def head_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_figures_and_verdicts_stand_there_as_they_were_measured(run):
    card = card_of(run)
    assert "| held-out · loss | 3.500 (3.400 to 3.600) | 2.250 (2.200 to 2.300) |" in card
    assert "- held-out, loss, tuned against base: better: -1.25 (95% interval -1.3 to -1.2)" in card
    assert "| rows.jsonl | train | 1,234 | 1,200 |" in card
    assert "- last training loss: 2.1250" in card
    [model] = head_of(card)["model-index"]
    [result] = model["results"]
    assert result["metrics"] == [{"type": "loss", "value": 2.25, "name": "loss"}]


def test_no_path_of_this_machine_and_no_row_is_in_anything_that_is_pushed(run, made):
    pushed = push(run, REPO, dry_run=True)
    texts = [pushed.card]
    texts += [
        file.content.decode() if isinstance(file.content, bytes) else file.content.read_text("utf-8", errors="replace")
        for file in pushed.files
    ]
    for text in texts:
        assert str(made.path.parent) not in text
        assert SECRET_ROW not in text


def test_the_home_folder_is_in_nothing_that_is_pushed(run, monkeypatch):
    """As PEFT writes it where `base_model_name_or_path` was a folder (huggingface/transformers#33922)."""
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    for name, key in (("adapter_config.json", "base_model_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        path = run / "adapter" / name
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**before, key: "/home/ada/models/llama", "x": ["/home/ada/y"]}))
    files = {file.name: file.content for file in push(run, REPO, dry_run=True).files}
    for name in ("adapter_config.json", "tokenizer_config.json"):
        assert b"ada/" not in files[name]
        assert json.loads(files[name])["x"] == ["y"]
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["x"] == ["/home/ada/y"]


def test_the_head_passes_the_checks_of_the_hub(run):
    for options in ({}, {"base_model": "org/llama-1b"}):
        assert head_faults(card_of(run, **options)) == []


def test_a_base_in_a_folder_is_named_only_by_what_the_user_says_it_is(run, capsys):
    assert "base_model" not in head_of(card_of(run))
    assert "--base-model OWNER/NAME names it" in capsys.readouterr().err
    named = head_of(card_of(run, base_model="org/llama-1b"))
    assert (named["base_model"], named["base_model_relation"]) == ("org/llama-1b", "adapter")
    assert named["license"] == "apache-2.0"  # of the base's own card


@pytest.mark.parametrize("name", ["/models/llama", "a/b/c", "./llama"])
def test_a_path_is_no_hub_id_of_a_base(run, name):
    with pytest.raises(ArgumentError, match="which is not a Hub id"):
        card_of(run, base_model=name)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("org/rows", ["org/rows"]),
        ("hf://datasets/org/rows@main/data/a.parquet", ["org/rows"]),
        ("/var/hf/images/", None),  # huggingface/autotrain-advanced#648
        ("s3://bucket/rows", None),
        ("rows.jsonl", None),
        ("data/rows.jsonl", None),
    ],
)
def test_only_datasets_of_the_hub_are_named_as_such(path, named):
    run = RunRecord(Path("run"), "finished", recipe_text=f"data:\n  train:\n  - path: {path}\n")
    values = yaml.safe_load(head(PushedFolder(Path("x"), "adapter", None, run, {}, {}), "x").strip("-\n"))
    assert values.get("datasets") == named


def test_a_licence_that_is_not_known_is_not_claimed(run, made):
    own = made.path.parent / "home" / "llama" / "README.md"
    text = own.read_text()
    own.write_text("No head.\n")
    try:
        card = card_of(run)
    finally:
        own.write_text(text)
    assert "licence of the base: unknown: look at the base" in card
    assert "license" not in head_of(card)


def test_what_was_not_measured_is_called_so(run):
    shutil.rmtree(run / "eval")
    card = card_of(run)
    assert "## Evaluation\n\nNot measured.\n" in card
    assert "model-index" not in head_of(card)


def test_a_secret_in_the_recipe_does_not_reach_the_card(run):
    secret = "hf_" + "Qq7" * 12
    path = run / "recipe.yaml"
    path.write_text(path.read_text().replace("name: tiny", f"name: tiny-{secret}"))
    assert secret not in card_of(run)


def test_names_with_marks_of_tables_and_html_stay_in_their_cells(run):
    report = json.loads((run / "data" / "report.json").read_text())
    report["sources"][0]["path"] = "a|b<script>.jsonl"
    (run / "data" / "report.json").write_text(json.dumps(report))
    assert "| a\\|b&lt;script&gt;.jsonl | train |" in card_of(run)


def test_the_template_of_blanks_that_peft_writes_is_replaced_and_a_word_in_it_is_kept(run, made, tmp_path):
    """By plain PEFT, whose template has `base_model` as it was loaded: here a path, which the Hub would refuse."""
    written = tmp_path / "peft"
    with_adapter(load_base(made.path.parent / "home" / "llama")).save_pretrained(written)
    blank = (written / "README.md").read_text()
    assert is_replaceable(blank)
    assert "More Information" not in card_of(written)
    edited = blank.replace("## Uses\n", "## Uses\n\nFor sums.\n").replace(str(made.path.parent / "home"), "org")
    (written / "README.md").write_text(edited)
    pushed = push(written, REPO, dry_run=True)
    assert pushed.is_card_yours
    assert pushed.card == edited


def test_the_template_of_huggingface_hub_is_one_of_blanks():
    card = ModelCard.from_template(ModelCardData())
    assert not is_replaceable(str(card).replace("# Model Card for Model ID", "# My model"))
    assert is_replaceable(str(card))


@pytest.mark.parametrize("text", ["", "---\nlicense: mit\n---\n", "# Mine\n", "[More Information Needed] or ask me."])
def test_what_somebody_wrote_or_chose_is_never_taken_for_a_blank(text):
    assert not is_replaceable(text)


def test_a_card_of_ours_is_known_until_a_letter_of_it_changes(run):
    card = card_of(run)
    assert is_replaceable(card)
    assert is_replaceable(card.replace("\n", "\r\n"))
    assert not is_replaceable(card.replace("3.500", "3.400"))
    assert not is_replaceable(card + "And a word.\n")


def test_a_card_in_the_folder_with_a_path_as_its_base_is_refused_before_the_hub_does(run):
    (run / "adapter" / "README.md").write_text("---\nbase_model: /home/ada/llama\n---\n# Sums\n")
    with pytest.raises(ArgumentError, match="its base_model is '/home/ada/llama', a path, which the Hub refuses"):
        card_of(run)
