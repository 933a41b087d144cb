import torch

from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.serve.speaker import load_speaker
from tests.deploy.models import load_base, logits


def test_run_adapter_folder_and_merged_folder_speak_alike(run, tmp_path):
    merge_run(run.path, tmp_path / "merged", MergeOptions(dtype="float32"))
    said = [
        logits(load_speaker(path, is_base_wanted=False).model)
        for path in (run.path, run.adapter_path, tmp_path / "merged")
    ]
    assert torch.equal(said[0], said[1])
    assert torch.allclose(said[0], said[2], atol=1e-4)


def test_the_base_speaks_without_the_adapter_and_quantized_as_in_training(run, base_folder):
    base = load_speaker(run.path, is_base_wanted=True)
    assert torch.equal(logits(base.model), logits(load_base(base_folder, "nf4")))


def test_a_note_says_in_which_precision_a_model_speaks(run, tmp_path, capsys):
    load_speaker(run.path, is_base_wanted=False)
    load_speaker(run.path, is_base_wanted=True)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("computing in float32 on cpu")]
    assert len(notes) == 2
