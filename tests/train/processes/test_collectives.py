"""Two processes are one run: gradients and losses of one process with twice the rows, one writer, one voice."""

from __future__ import annotations

import signal

import pytest
import torch
from safetensors.torch import load_file

from qlora_cli.run.checkpoints import list_checkpoints
from qlora_cli.run.claim import claimed
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest
from tests.reliability.harness.rank_runs import Ranks, content, metrics, serving, write_recipe

TRAINING_STEP = "qlora_cli.train.trainer:QloraTrainer.training_step"
FOUR_BIT = {"quantization": {"quant_type": "nf4"}}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("logs")) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def recipe(tiny_base, chat_data, tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe") / "two.yaml", tiny_base, chat_data)


@pytest.fixture(scope="module")
def straight(ranks, recipe, tmp_path_factory):
    """A run of eight steps in two processes that nothing disturbs."""
    run = tmp_path_factory.mktemp("straight") / "run"
    outcome = ranks.run(["train", str(recipe), "--run-dir", str(run)])
    assert outcome.exit_codes == [0, 0], outcome.logs
    return run, outcome


def train(ranks: Ranks, recipe, run, *more: str, options=None, num: int = 2):
    return ranks.run(["train", str(recipe), "--run-dir", str(run), *more], options=options, num=num)


@pytest.mark.parametrize("base", [{}, FOUR_BIT], ids=["fp32", "nf4"])
def test_gradients_and_losses_of_two_processes_are_those_of_one_with_twice_the_rows(
    ranks, tiny_base, chat_data, tmp_path, base
):
    """Over two epochs of 39 rows, whose last batch is not full."""
    runs = {}
    for num, batch_size in ((1, 4), (2, 2)):
        training = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 2, "max_steps": 10}
        training |= {"learning_rate": 1e-4, "optim": "adamw_torch", "max_grad_norm": 1.0}
        sections = {"training": training, "lora": {"lora_dropout": 0.0, "init_lora_weights": "gaussian"}, **base}
        recipe = write_recipe(tmp_path / f"{num}.yaml", tiny_base, chat_data, **sections)
        folder = tmp_path / f"gradients-{num}"
        folder.mkdir()
        outcome = train(ranks, recipe, tmp_path / f"{num}", options={0: {"gradients": str(folder)}}, num=num)
        assert outcome.exit_codes == [0] * num, outcome.logs
        runs[num] = folder, metrics(tmp_path / f"{num}")
    for step in range(10):
        one, two = (load_file(runs[num][0] / f"{step}.safetensors") for num in (1, 2))
        assert one.keys() == two.keys()
        size = max(gradient.abs().max() for gradient in one.values())
        assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-6 * max(size, 1)) for name in one)
    for one, two in zip(runs[1][1], runs[2][1], strict=True):
        for key in ("loss", "eval_loss"):
            assert one.get(key, 0.0) == pytest.approx(two.get(key, 0.0), abs=1e-6), (one["step"], key)


def test_one_process_writes_and_shows_and_the_other_says_nothing(straight):
    run, outcome = straight
    first, second = outcome.logs
    assert "2 processes on cpu: each step takes 2 rows x 4 x 2 processes = 16 rows" in first
    assert "8 of 8 are done" in first
    assert second == ""
    assert read_manifest(RunDirectory(run))["num_processes"] == 2
    assert [line["step"] for line in metrics(run) if "loss" in line] == list(range(1, 9))


@pytest.mark.parametrize("steps", [1, 5], ids=["in the first epoch", "in a later epoch"])
def test_a_resumed_run_in_two_processes_is_the_straight_one_to_the_bit(ranks, recipe, straight, tmp_path, steps):
    stopped = train(ranks, recipe, tmp_path / "run", "--stop-after", str(steps))
    assert stopped.exit_codes == [0, 0], stopped.logs
    resumed = train(ranks, recipe, tmp_path / "run", "--resume")
    assert resumed.exit_codes == [0, 0], resumed.logs
    assert content(tmp_path / "run") == content(straight[0])
    assert metrics(tmp_path / "run") == metrics(straight[0])


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "sections",
    [
        {**FOUR_BIT, "lora": {"init_lora_weights": "pissa"}},
        {**FOUR_BIT, "lora": {"init_lora_weights": "loftq"}, "model": {"dtype": "bfloat16"}},
        {"lora": {"autocast_adapter_dtype": False, "use_dora": True, "modules_to_save": ["lm_head"]}},
        {"quantization": {"method": "int", "bits": 3}, "lora": {"use_qalora": True}},
    ],
    ids=["pissa", "loftq in bf16", "dora and a saved module", "qa-lora"],
)
def test_other_kinds_of_adapter_resume_to_the_bit_too(ranks, tiny_base, chat_data, tmp_path, sections):
    sections["training"] = {"max_steps": 4}
    recipe = write_recipe(tmp_path / "two.yaml", tiny_base, chat_data, **sections)
    for arguments in (["straight"], ["run", "--stop-after", "3"], ["run", "--resume"]):
        outcome = train(ranks, recipe, tmp_path / arguments[0], *arguments[1:])
        assert outcome.exit_codes == [0, 0], outcome.logs
    assert content(tmp_path / "run", 4) == content(tmp_path / "straight", 4)


def test_sums_and_messages_between_processes(ranks):
    """Gradients of a parameter that one process did not use count as zero there; one that none used has none."""
    outcome = ranks.call("tests.train.rank_sums:check")
    assert outcome.exit_codes == [0, 0], outcome.logs


def test_processes_draw_dropout_of_their_own(straight):
    saved = content(straight[0])
    one, two = (saved[f"random-{rank}.safetensors"] for rank in (0, 1))
    assert one != two


def test_another_number_of_processes_does_not_go_on(ranks, recipe, tmp_path):
    run = tmp_path / "run"
    assert train(ranks, recipe, run, "--stop-after", "2").exit_codes == [0, 0]
    alone = train(ranks, recipe, run, "--resume", num=1)
    assert alone.exit_codes == [3]
    assert "was started with 2 processes and cannot continue with 1 process" in alone.logs[0]
    assert f"`torchrun --nproc-per-node 2 -m qlora_cli train {run}/recipe.yaml" in alone.logs[0].replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--set", "lora.rr=1"], 2, "unknown key 'lora.rr'"),
        (["--set", "data.train=missing.jsonl"], 2, "missing.jsonl"),
        (["--set", "lora.target_modules=[nope]"], 2, "'nope' matches no linear module"),
        (["--resume", "--overwrite"], 2, "exclude each other"),
    ],
    ids=["recipe", "data", "model", "arguments"],
)
def test_an_error_that_all_have_is_said_once_and_ends_all_with_its_code(
    ranks, recipe, tmp_path, arguments, exit_code, words
):
    outcome = train(ranks, recipe, tmp_path / "run", *arguments)
    assert outcome.exit_codes == [exit_code, exit_code]
    said = "".join(outcome.logs)
    assert words in said.replace("\n", " ")
    assert said.count("error:") == 1


def test_resume_where_there_is_no_run_starts_one_and_it_is_said_once(ranks, recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    outcome = train(ranks, recipe, run.path, "--resume", "--stop-after", "1")
    assert outcome.exit_codes == [0, 0]
    assert "".join(outcome.logs).count("there is no run in") == 1
    assert run.is_started


def test_a_run_directory_in_use_ends_both_with_6(ranks, recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    with claimed(run):
        outcome = train(ranks, recipe, run.path)
    assert outcome.exit_codes == [6, 6]
    assert outcome.logs[1] == ""
    assert not run.is_started


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_of_one_process_that_is_not_finite_stops_all_before_the_update_and_that_process_says_it(
    ranks, recipe, tmp_path, rank
):
    run = RunDirectory(tmp_path / "run")
    outcome = train(ranks, recipe, run.path, options={rank: {"nan_at": 4 * 4 + 2}})
    assert outcome.exit_codes == [4, 4], outcome.logs
    assert "the loss of step 5 is nan; stopped before the update" in outcome.logs[rank]
    assert "nan" not in outcome.logs[1 - rank]
    assert [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints_path)] == [2, 4]
    assert train(ranks, recipe, run.path, "--resume").exit_codes == [0, 0]


@pytest.mark.parametrize(
    ("receivers", "number"),
    [
        ([0], signal.SIGINT),
        ([1], signal.SIGTERM),
        ([0, 1], signal.SIGINT),
        pytest.param([0], signal.SIGTERM, marks=pytest.mark.torture),
        pytest.param([1], signal.SIGINT, marks=pytest.mark.torture),
        pytest.param([0, 1], signal.SIGTERM, marks=pytest.mark.torture),
    ],
)
def test_a_signal_to_any_process_stops_all_at_the_same_step_and_the_run_can_go_on(
    ranks, recipe, straight, tmp_path, receivers, number
):
    """Each receiver gets it twice, as it does from a terminal and a launcher at the same time."""
    run = tmp_path / "run"
    asked = {"signals_at": (TRAINING_STEP, 2 * 4 + 1, [number, number])}
    outcome = train(ranks, recipe, run, options=dict.fromkeys(receivers, asked))
    assert outcome.exit_codes == [128 + number, 128 + number], outcome.logs
    assert sum("stopped at step 3 of 8; the checkpoint is saved" in log for log in outcome.logs) == 1
    assert "torchrun --nproc-per-node 2 -m qlora_cli train" in "".join(outcome.logs)
    assert train(ranks, recipe, run, "--resume").exit_codes == [0, 0]
    assert content(run) == content(straight[0])
