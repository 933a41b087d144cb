"""A base in integers in two processes: the first one writes it, the other one waits and loads the same."""

from __future__ import annotations

import pytest

from qlora_cli.model.integer.making import integer_folder, stored_base
from qlora_cli.recipe.reader import load_recipe
from tests.reliability.harness.rank_runs import content, metrics, serving, write_recipe

WRITERS = {
    "none": "qlora_cli.model.integer.making:write_integers",
    "rows": "qlora_cli.train.setup:write_calibrated_base",
}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Runs a recipe in one or two processes, of which the second one dies if it writes a base."""
    with serving(tmp_path_factory.mktemp("logs")) as ranks:

        def run(recipe, folder, *more, num=2):
            writer = WRITERS[load_recipe(recipe).quantization.calibration]
            options = {1: {"killed_at": (writer, 1)}} if num == 2 else None
            outcome = ranks.run(["train", str(recipe), "--run-dir", str(folder), *more], options=options, num=num)
            assert outcome.exit_codes == [0] * num, outcome.logs

        yield run


def recipe_with(calibration, folder, base, rows):
    return write_recipe(
        folder / "two.yaml",
        base,
        rows,
        # no other test leaves this layer out, so that nothing lies in the cache yet
        quantization={"method": "int", "bits": 3, "calibration": calibration, "skip_modules": ["o_proj"]},
        lora={"use_qalora": True},
        data={"eval_fraction": None},
        training={"max_steps": 2, "gradient_accumulation_steps": 1, "save_steps": 1},
        eval={"eval_strategy": "no", "eval_steps": None},
    )


def test_the_first_process_alone_writes_the_base_into_the_cache(train, tiny_base, chat_data, tmp_path):
    path = recipe_with("none", tmp_path, tiny_base, chat_data)
    recipe = load_recipe(path)
    folder = integer_folder(recipe.model, recipe.quantization)
    assert not folder.exists()
    train(path, tmp_path / "run")
    made = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    stored_base(recipe.model, recipe.quantization)
    assert (folder / WEIGHTS).read_bytes() == made


def test_a_run_that_two_processes_resume_is_the_straight_one_and_its_base_that_of_one(
    train, tiny_base, chat_data, tmp_path
):
    recipe = recipe_with("rows", tmp_path, tiny_base, chat_data)
    straight, stopped, alone = (tmp_path / name for name in ("straight", "stopped", "alone"))
    train(recipe, straight)
    train(recipe, stopped, "--stop-after", "1")
    train(recipe, stopped, "--resume")
    train(recipe, alone, "--stop-after", "1", num=1)
    assert content(stopped, 2) == content(straight, 2)
    assert metrics(stopped) == metrics(straight)
    bases = [(run / "integers" / WEIGHTS).read_bytes() for run in (straight, stopped, alone)]
    assert bases[0] == bases[1] == bases[2]
