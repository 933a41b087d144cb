"""A run that is stopped and resumed is the uninterrupted one to the bit, whatever it trains with.

On a CPU the paged optimizers run unpaged (`train/arguments.py`); `tests/gpu/test_paged_optimizer.py` has them on a GPU.
"""

from __future__ import annotations

import json
from itertools import combinations, product
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple, get_args

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from qlora_cli.recipe.schema import Recipe, TrainingSection
from qlora_cli.run.checkpoints import SEAL_NAME
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.files import sha256_file
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.checkpoint.state_io import load_optimizer, save_optimizer
from qlora_cli.train.session import TrainOptions, train_recipe

OPTIMIZERS = get_args(TrainingSection.model_fields["optim"].annotation)
BASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"model": {"dtype": "bfloat16"}},
    "nf4": {"quantization": {}},
    "int8": {"quantization": {"quant_type": "int8"}},
}
STEPS = 6
EPOCH_ENDS = (3, 6)
"""Nine rows, four a step: the third step of each epoch has one row."""

NUM_ROWS = 9
ROWS_PER_STEP = 4
MAX_LENGTH = 80
"""Room for two documents of 34 to 38 tokens, and not for three."""

MEASURED = {"tokens_per_second", "peak_memory_bytes"}
"""Columns of metrics.jsonl that no two runs share."""

STATE_NAME = "trainer_state.json"


class Case(NamedTuple):
    """How one run trains, and after which step it is stopped."""

    optim: str
    base: str
    dropout: float
    packing: bool
    accumulation: int
    stop: int

    def __str__(self) -> str:
        rows = "packed" if self.packing else "unpacked"
        return f"{self.optim}-{self.base}-dropout{self.dropout}-{rows}-x{self.accumulation}-stop{self.stop}"


ALL_CASES = [Case(*values) for values in product(OPTIMIZERS, BASES, (0.0, 0.1), (True, False), (1, 2), range(1, STEPS))]
NUM_CASES = 24
STOPS = (2, 3, 4)
"""In the first epoch, at its end, in the second one."""


def groups(case: Case, size: int) -> set[tuple[tuple[int, Any], ...]]:
    """Every `size` values that stand together in a case, with their columns."""
    return set(combinations(enumerate(case), size))


def cover(cases: list[Case], count: int) -> list[Case]:
    """So many of the cases, each the one that brings the most new pairs of values, then the most new triples."""
    chosen: list[Case] = []
    seen: set[tuple[tuple[int, Any], ...]] = set()
    for _ in range(count):
        best = max(cases, key=lambda case: [len(groups(case, size) - seen) for size in (2, 3)])
        chosen.append(best)
        seen |= groups(best, 2) | groups(best, 3)
    return chosen


COVERING = cover([case for case in ALL_CASES if case.stop in STOPS], NUM_CASES)


class Ground:
    """Base and data that all cases share, and a folder for their runs."""

    def __init__(self, base: Path, folder: Path) -> None:
        self._base = base
        self._folder = folder
        self._num_runs = 0
        for name, num_rows in (("train", NUM_ROWS), ("packed", 2 * NUM_ROWS), ("eval", 3)):
            rows = ({"instruction": f"add {n} and {n + 1}", "output": str(2 * n + 1)} for n in range(num_rows))
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def recipe(self, case: Case) -> Recipe:
        """Nine rows an epoch, two epochs; A matrices of 4,096 elements have 8-bit state, B of v_proj has not."""
        sections: dict[str, Any] = {
            "name": "case",
            "model": {"base_model": str(self._base)},
            "lora": {"r": 64, "lora_dropout": case.dropout, "target_modules": ["q_proj", "v_proj"]},
            "data": {
                "train": str(self._folder / ("packed.jsonl" if case.packing else "train.jsonl")),
                "eval": str(self._folder / "eval.jsonl"),
                "packing": case.packing,
                "max_length": MAX_LENGTH,
            },
            "training": {
                "max_steps": STEPS,
                "optim": case.optim,
                "per_device_train_batch_size": ROWS_PER_STEP // case.accumulation,
                "gradient_accumulation_steps": case.accumulation,
                "learning_rate": 0.01,
            },
        }
        for section, keys in BASES[case.base].items():
            sections[section] = sections.get(section, {}) | keys
        return Recipe.model_validate(sections)

    def straight(self, case: Case) -> RunDirectory:
        """A run without a stop."""
        run = self._new_run()
        train_recipe(self.recipe(case), run, TrainOptions())
        return run

    def resumed(self, case: Case) -> RunDirectory:
        """A run that is stopped and resumed."""
        run = self._new_run()
        stopped = train_recipe(self.recipe(case), run, TrainOptions(stop_after=case.stop))
        assert (stopped.num_steps, stopped.is_finished) == (case.stop, False)
        epoch = trainer_state(run, case.stop)["epoch"]
        assert epoch.is_integer() == (case.stop in EPOCH_ENDS), epoch
        train_recipe(self.recipe(case), run, TrainOptions(resume=True))
        return run

    def _new_run(self) -> RunDirectory:
        self._num_runs += 1
        return RunDirectory(self._folder / f"run-{self._num_runs}")


@pytest.fixture(scope="module")
def ground(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tiny_base, tmp_path_factory.mktemp("matrix"))


def checkpoint(run: RunDirectory, step: int = STEPS) -> Path:
    return run.checkpoints_path / f"step-{step:06d}"


def trainer_state(run: RunDirectory, step: int = STEPS) -> dict[str, Any]:
    """Without its log: metrics.jsonl is compared instead.

    trl counts tokens from zero in every session, and a stop at an epoch's end saves before that epoch's evaluation.
    """
    state = json.loads((checkpoint(run, step) / STATE_NAME).read_text())
    del state["log_history"]
    return state


def remains(run: RunDirectory) -> dict[str, Any]:
    """All that a run leaves, but for times and memory: hashes of files, the trainer's state, the lines of metrics."""
    lines = [{key: line[key] for key in line.keys() - MEASURED} for line in read_metrics(run.metrics_path)]
    left: dict[str, Any] = {"metrics": lines, STATE_NAME: trainer_state(run)}
    for folder in (checkpoint(run), run.adapter_path):
        paths = (path for path in folder.iterdir() if path.name not in (SEAL_NAME, STATE_NAME))
        left |= {str(path.relative_to(run.path)): sha256_file(path) for path in paths}
    return left


def state_dtypes(run: RunDirectory) -> set[torch.dtype]:
    """What the first moments of the last checkpoint are stored in."""
    tensors = load_file(checkpoint(run) / "optimizer.safetensors")
    return {tensor.dtype for name, tensor in tensors.items() if name.endswith((".state1", ".exp_avg"))}


@pytest.mark.parametrize("case", COVERING, ids=str)
def test_a_run_stopped_and_resumed_is_the_straight_one_to_the_bit(ground, case):
    straight = ground.straight(case)
    is_8bit = case.optim.endswith("8bit")
    assert state_dtypes(straight) == ({torch.uint8, torch.float32} if is_8bit else {torch.float32})
    assert remains(ground.resumed(case)) == remains(straight)


def test_the_cases_hold_every_pair_of_values():
    offered = {pair for case in ALL_CASES if case.stop in STOPS for pair in groups(case, 2)}
    assert {pair for case in COVERING for pair in groups(case, 2)} == offered
    assert len(set(COVERING)) == NUM_CASES


@pytest.mark.torture
@pytest.mark.parametrize("case", [case for case in ALL_CASES if case.stop == 1], ids=str)
def test_every_combination_stopped_after_every_step_is_the_straight_one_to_the_bit(ground, case):
    expected = remains(ground.straight(case))
    for stop in range(1, STEPS):
        assert remains(ground.resumed(case._replace(stop=stop))) == expected, stop


SENSITIVE = Case("adamw_8bit", "fp32", 0.1, packing=False, accumulation=2, stop=4)


@pytest.fixture(scope="module")
def sensitive(ground) -> dict[str, Any]:
    """What the undisturbed run of `SENSITIVE` leaves."""
    return remains(ground.straight(SENSITIVE))


@pytest.mark.parametrize(
    "forgotten",
    [
        "qlora_cli.train.saving_trainer.restore_random_state",
        "qlora_cli.train.saving_trainer.load_optimizer",
        "qlora_cli.train.saving_trainer.set_adapter_tensors",
        "torch.optim.lr_scheduler.LambdaLR.load_state_dict",
        "transformers.trainer.skip_first_batches",
    ],
)
def test_a_resume_that_forgets_something_is_seen(ground, sensitive, monkeypatch, forgotten):
    expected = sensitive
    owner, _, name = forgotten.rpartition(".")
    monkeypatch.setattr(resolve_name(owner), name, lambda *arguments, **options: arguments[0])
    found = remains(ground.resumed(SENSITIVE))
    assert found.keys() == expected.keys()
    assert found["adapter/adapter_model.safetensors"] != expected["adapter/adapter_model.safetensors"]
    assert found["metrics"] != expected["metrics"]


def make_optimizer(name: str, parameters: list[torch.nn.Parameter], folder: Path) -> torch.optim.Optimizer:
    """What the trainer makes of a name, paged ones too: bitsandbytes itself runs them unpaged on a CPU."""
    arguments = TrainingArguments(output_dir=str(folder), optim=name, use_cpu=True, report_to="none")
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return kind(parameters, **options)


def step(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    sum((parameter**3).sum() for parameter in parameters).backward()
    optimizer.step()
    optimizer.zero_grad()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_that_is_offered_survives_to_the_bit(tmp_path, name, dtype):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(size, dtype=dtype)) for size in ((128, 64), (8,))]
    optimizer = make_optimizer(name, parameters, tmp_path)
    for _ in range(3):
        step(parameters, optimizer)
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    restored = make_optimizer(name, copies, tmp_path)
    saves = [tmp_path / "first", tmp_path / "second"]
    for folder, kept in zip(saves, (optimizer, restored), strict=True):
        folder.mkdir()
        if kept is restored:
            load_optimizer(saves[0], restored)
        save_optimizer(folder, kept)
    assert files(saves[0]) == files(saves[1])
    for _ in range(3):
        step(parameters, optimizer)
        step(copies, restored)
    assert all(torch.equal(one, other) for one, other in zip(parameters, copies, strict=True))


def test_the_note_that_state_lies_in_paged_memory_stays_behind(tmp_path):
    """bitsandbytes asks the driver to fetch state that bears this note, which fails where it has become a plain tensor.

    A pickle carries the note (bitsandbytes#782); safetensors do not.
    """
    parameters = [torch.nn.Parameter(torch.ones(128, 64))]
    optimizer = make_optimizer("paged_adamw_32bit", parameters, tmp_path)
    step(parameters, optimizer)
    [values] = optimizer.state.values()
    for name in ("state1", "state2"):
        values[name].is_paged = True
    torch.save(optimizer.state_dict(), tmp_path / "pickle")
    save_optimizer(tmp_path, optimizer)
    pickled = make_optimizer("paged_adamw_32bit", parameters, tmp_path)
    pickled.load_state_dict(torch.load(tmp_path / "pickle", weights_only=True))
    assert all(pickled.state[parameters[0]][name].is_paged for name in ("state1", "state2"))
    load_optimizer(tmp_path, optimizer)
    assert not any(hasattr(optimizer.state[parameters[0]][name], "is_paged") for name in ("state1", "state2"))
    step(parameters, optimizer)
