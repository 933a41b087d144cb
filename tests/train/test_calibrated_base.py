"""A run whose own rows decide how its base is rounded: the base lies in the run, and is one in integers like any."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.render.for_data import data_renderer
from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.evaluate.contest import arrange
from qlora_cli.model.adapter_record import read_adapter_record
from qlora_cli.model.base_choice import BaseChoice
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.model.tuned import find_tuned, load_tuned
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.folders import replaced_folder
from qlora_cli.run.own_files import run_files
from qlora_cli.serve.engine.same_base import check_one_base
from qlora_cli.train.session import TrainOptions, train_recipe
from qlora_cli.train.setup import calibration_batches, make_collator, setup_model

SETTINGS = {
    "quantization": {"method": "int", "bits": 3, "calibration": "rows"},
    "lora": {"use_qalora": True, "lora_dropout": 0.1},
    "training": {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 1},
}
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def batches_of(recipe):
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare_data(recipe.data, data_renderer(tokenizer, recipe.data), 0)
    return calibration_batches(recipe, prepared.train, make_collator(recipe, tokenizer))


@pytest.fixture(scope="module")
def run(narrow_recipe, tmp_path_factory):
    run = RunDirectory(tmp_path_factory.mktemp("calibrated") / "run")
    train_recipe(narrow_recipe(**SETTINGS), run, TrainOptions())
    return run


def test_a_run_that_is_resumed_keeps_its_base_and_ends_to_the_bit_as_the_straight_one(run, narrow_recipe, tmp_path):
    stopped = RunDirectory(tmp_path / "run")
    train_recipe(narrow_recipe(**SETTINGS), stopped, TrainOptions(stop_after=2))
    weights = stopped.integers_path / WEIGHTS
    written = weights.stat().st_mtime_ns
    train_recipe(narrow_recipe(**SETTINGS), stopped, TrainOptions(resume=True))
    assert weights.stat().st_mtime_ns == written
    assert weights.read_bytes() == (run.integers_path / WEIGHTS).read_bytes()
    assert (stopped.adapter_path / ADAPTER).read_bytes() == (run.adapter_path / ADAPTER).read_bytes()


def test_a_changed_base_and_an_absent_one_are_refused_on_resume_in_one_line(run, narrow_recipe, tmp_path):
    copy = RunDirectory(shutil.copytree(run.path, tmp_path / "run"))
    weights = copy.integers_path / WEIGHTS
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ArgumentError, match="has changed since qlora wrote it"):
        train_recipe(narrow_recipe(**SETTINGS), copy, TrainOptions(resume=True))
    with pytest.raises(IdentityError, match="has changed since the run made it"):
        load_tuned(copy.path)
    shutil.rmtree(copy.integers_path)
    with pytest.raises(IdentityError, match="stands on its run's own base in integers, which is not at"):
        train_recipe(narrow_recipe(**SETTINGS), copy, TrainOptions(resume=True))


def test_the_merged_model_has_the_run_s_codes_and_no_logit_moves(run):
    merged = merge_run(run.path, None, MergeOptions())
    assert merged.agreement.max_logit_difference < 1e-4
    assert merged.dtype == "int3"
    before, after = load_file(run.integers_path / WEIGHTS), load_file(run.merged_path / WEIGHTS)
    codes = [key for key in before if key.endswith((".codes", ".scales"))]
    assert len(codes) == 28
    assert all(before[key].equal(after[key]) for key in codes)


def test_with_the_adapter_off_the_base_of_the_run_answers(run):
    source = find_tuned(run.path)
    assert source.integers == str(run.integers_path)
    assert not source.is_base_apart
    assert source.starts_at_zero
    tuned = load_tuned(source)
    stored = load_file(run.integers_path / WEIGHTS)
    layers = {n: m for n, m in tuned.model.get_base_model().named_modules() if isinstance(m, IntegerLinear)}
    assert len(layers) == 14
    for name, layer in layers.items():
        assert layer.codes.equal(stored[f"{name.replace('.base_layer', '')}.codes"])


def test_a_copy_of_the_adapter_knows_where_its_base_is(run, tmp_path):
    moved = RunDirectory(shutil.copytree(run.path, tmp_path / "run"))
    copy = shutil.copytree(run.adapter_path, tmp_path / "copy")
    assert read_adapter_record(copy).integers == run.integers_path.absolute()
    ids = torch.arange(16)[None]
    with torch.no_grad():
        logits = [load_tuned(place).model(ids).logits for place in (run.path, copy, moved.path)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert find_tuned(moved.path).integers == str(moved.integers_path)
    check_one_base([("a", find_tuned(run.path)), ("b", find_tuned(copy))])
    assert find_tuned(copy, BaseChoice(quantization="nf4")).integers is None
    shutil.rmtree(moved.integers_path)
    with pytest.raises(IdentityError, match="stands on its run's own base in integers") as caught:
        find_tuned(moved.path)
    assert "put that folder back there" in caught.value.problems[0].hint


def test_two_runs_with_other_rows_share_no_base(run, tmp_path):
    other = RunDirectory(shutil.copytree(run.path, tmp_path / "other"))
    stored = load_file(other.integers_path / WEIGHTS)
    with replaced_folder(other.integers_path) as folder:
        shutil.copytree(run.integers_path, folder, dirs_exist_ok=True)
        save_file({name: tensor + 1 for name, tensor in stored.items()}, folder / WEIGHTS)
    sources = [("a", find_tuned(run.path)), ("b", find_tuned(other.path))]
    with pytest.raises(IdentityError, match=r"'b' stands on '.*other/integers', and 'a' '.*run/integers'"):
        check_one_base(sources)
    contest = arrange([source for _, source in sources], None)
    assert [entrant.role for entrant in contest.entrants].count("base") == 2


def test_the_base_is_one_of_the_files_of_the_run(run):
    assert f"integers/{WEIGHTS}" in run_files(run.path)


def test_without_rows_there_is_nothing_to_calibrate_with(narrow_recipe, tmp_path):
    with pytest.raises(ValueError, match="needs rows"):
        setup_model(narrow_recipe(**SETTINGS), RunDirectory(tmp_path), is_resumed=False)


def test_a_calibrated_start_makes_up_for_what_the_calibrated_base_lacks(narrow_recipe, tmp_path):
    lora = SETTINGS["lora"] | {"init_lora_weights": "calibrated"}
    recipe = narrow_recipe(**SETTINGS | {"lora": lora})
    model = setup_model(recipe, RunDirectory(tmp_path), is_resumed=False, calibration=batches_of(recipe))
    starts = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert len(starts) == 4
    assert all(value.count_nonzero() for value in starts)
