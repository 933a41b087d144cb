"""The calibrated start of a run: which rows it looks at, and that such a run merges."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.render.for_data import data_renderer
from qlora_cli.deploy.integers import stored_folder
from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.errors import ArgumentError
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.model.tuned import find_tuned
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train import setup
from qlora_cli.train.session import TrainOptions, train_recipe
from qlora_cli.train.setup import calibration_batches, make_collator, setup_model

CALIBRATED = {"quantization": {}, "lora": {"init_lora_weights": "calibrated", "lora_dropout": 0.0}}
QA_LORA = {"quantization": {"method": "int", "bits": 2}, "lora": {**CALIBRATED["lora"], "use_qalora": True}}


def rows_of(recipe):
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare_data(recipe.data, data_renderer(tokenizer, recipe.data), 0)
    batches = calibration_batches(recipe, prepared.train, make_collator(recipe, tokenizer))
    assert len(batches) == 0 or {len(batch["input_ids"]) for batch in batches} == {1}  # so no row is padded
    return [batch["input_ids"][0].tolist() for batch in batches], prepared.train


def test_the_seed_draws_training_rows_up_to_a_number_of_tokens(narrow_recipe, monkeypatch):
    drawn, train = rows_of(narrow_recipe(**CALIBRATED))
    assert sorted(drawn) == sorted(row.input_ids for row in train)  # there are fewer than the most
    monkeypatch.setattr(setup, "NUM_CALIBRATION_TOKENS", 300)
    drawn, _ = rows_of(narrow_recipe(**CALIBRATED))
    assert sum(map(len, drawn[:-1])) < 300 <= sum(map(len, drawn))
    assert rows_of(narrow_recipe(**CALIBRATED))[0] == drawn
    assert rows_of(narrow_recipe(**CALIBRATED, training={"seed": 7}))[0] != drawn


def test_other_initial_weights_need_no_rows(narrow_recipe, tmp_path):
    assert rows_of(narrow_recipe(quantization={}))[0] == []
    with pytest.raises(ValueError, match="need rows"):
        setup_model(narrow_recipe(**CALIBRATED), RunDirectory(tmp_path), is_resumed=False)


@pytest.mark.parametrize(
    ("sections", "dtype"),
    [
        (CALIBRATED, "float32"),
        ({**CALIBRATED, "quantization": {"method": "int", "bits": 2}}, "float32"),
        (QA_LORA, "auto"),  # its codes stay
    ],
    ids=["nf4", "int2", "int2 QA-LoRA"],
)
def test_a_calibrated_run_starts_away_from_zero_and_merges_onto_what_it_saw(narrow_recipe, tmp_path, sections, dtype):
    run = RunDirectory(tmp_path / "run")
    training = {"max_steps": 1, "learning_rate": 1e-30}
    train_recipe(narrow_recipe(**sections, training=training), run, TrainOptions())
    assert not find_tuned(run.path).starts_at_zero
    with pytest.raises(ArgumentError, match="--onto original does not go with"):
        merge_run(run.path, None, MergeOptions(onto="original"))
    merged = merge_run(run.path, None, MergeOptions(dtype=dtype))
    assert merged.agreement.mean_kl < 1e-7
    assert merged.effect.mean_kl > 1000 * merged.agreement.mean_kl
    if sections is QA_LORA:
        codes = [load_codes(folder) for folder in (stored_folder(find_tuned(run.path)), merged.path)]
        assert codes[0] == codes[1] != {}


def load_codes(folder):
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.tolist() for name, tensor in tensors.items() if name.endswith(".codes")}
