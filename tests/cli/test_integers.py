"""QA-LoRA by the commands that a user types: the codes that were trained on are those that each of them writes."""

import json
import os

import pytest
from safetensors.torch import load_file

from qlora_cli.cache_folder import cache_folder

pytestmark = pytest.mark.slow

SHORT = ("--prompt", "add 2 and 3", "--max-new-tokens", "8")


@pytest.mark.parametrize(
    "bits", [4, pytest.param(3, marks=pytest.mark.torture), pytest.param(2, marks=pytest.mark.torture)]
)
def test_train_merge_and_export_keep_the_codes_and_the_answers(
    bits, call, recipe_file, empty_cache, tmp_path, monkeypatch
):
    if "QLORA_MLX_PYTHON" not in os.environ:  # its folder is written by us, and then nobody opens it
        monkeypatch.setenv("QLORA_MLX_PYTHON", str(tmp_path / "none"))
    recipe = json.loads(recipe_file.read_text())
    recipe["model"]["dtype"] = "float32"
    recipe["lora"]["use_qalora"] = True
    recipe_file.write_text(json.dumps(recipe | {"quantization": {"method": "int", "bits": bits, "group_size": 32}}))
    ran = [
        call("train", recipe_file, "--run-dir", "run"),
        call("merge", "run"),
        call("export", "run", "--format", "mlx", "--out", "mlx"),
    ]
    assert [each.code for each in ran] == [0, 0, 0], [each.err for each in ran]
    [folder] = cache_folder("bases").iterdir()
    base, merged, mlx = (
        load_file(place / "model.safetensors") for place in (folder, tmp_path / "run" / "merged", tmp_path / "mlx")
    )
    layers = [name.removesuffix("codes") for name in base if name.endswith(".codes")]
    assert len(layers) == 14
    for layer in layers:
        codes = base[f"{layer}codes"].numpy().tobytes()
        assert merged[f"{layer}codes"].numpy().tobytes() == mlx[f"{layer}weight"].numpy().tobytes() == codes
        assert not merged[f"{layer}offsets"].equal(base[f"{layer}offsets"].float())
        assert mlx[f"{layer}biases"].equal(merged[f"{layer}offsets"])
    answers = [call("generate", place, *SHORT, "--json").json["text"] for place in ("run", "run/merged")]
    assert answers[0] == answers[1]
