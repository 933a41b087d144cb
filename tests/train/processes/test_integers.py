"""A base in integers in two processes: the first one writes it, the other one waits and loads the same."""

from __future__ import annotations

import pytest

from qlora_cli.cache_folder import cache_folder
from qlora_cli.model.integer.making import stored_base
from qlora_cli.recipe.reader import load_recipe
from tests.reliability.harness.rank_runs import content, metrics, serving, write_recipe

WRITERS = {
    "none": "qlora_cli.model.integer.making:write_integers",
    "rows": "qlora_cli.train.setup:write_calibrated_base",
}
WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("calibration", WRITERS)
def test_the_first_process_alone_writes_the_base_and_a_resumed_run_is_the_straight_one(
    calibration, tiny_base, chat_data, empty_cache, tmp_path
):
    recipe = write_recipe(
        tmp_path / "two.yaml",
        tiny_base,
        chat_data,
        quantization={"method": "int", "bits": 3, "group_size": 32, "calibration": calibration},
        lora={"use_qalora": True},
        training={"max_steps": 4, "gradient_accumulation_steps": 1},
    )
    straight, stopped, alone = (tmp_path / name for name in ("straight", "stopped", "alone"))
    killed_if_it_writes = {1: {"killed_at": (WRITERS[calibration], 1)}}

    def train(run, *more, num=2):
        options = killed_if_it_writes if num == 2 else None
        outcome = ranks.run(["train", str(recipe), "--run-dir", str(run), *more], options=options, num=num)
        assert outcome.exit_codes == [0] * num, outcome.logs

    with serving(tmp_path) as ranks:
        train(straight)
        train(stopped, "--stop-after", "2")
        train(stopped, "--resume")
        if calibration == "rows":
            train(alone, "--stop-after", "1", num=1)
    assert content(stopped, 4) == content(straight, 4)
    assert metrics(stopped) == metrics(straight)
    if calibration == "rows":
        bases = [(run / "integers" / WEIGHTS).read_bytes() for run in (straight, stopped, alone)]
        assert bases[0] == bases[1] == bases[2]
        return
    [folder] = cache_folder("bases").iterdir()
    made = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    asked = load_recipe(recipe)
    stored_base(asked.model, asked.quantization)
    assert (folder / WEIGHTS).read_bytes() == made
