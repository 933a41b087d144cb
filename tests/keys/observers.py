"""Outcomes of a recipe: each observer takes one and an empty folder, and returns something comparable.

They look at the thing itself (loaded weights, token rows, an optimizer, the files of a run), never at the recipe.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from typer.testing import CliRunner

from qlora_cli.cli.app import app
from qlora_cli.data.prepare import PreparedData, prepare_data
from qlora_cli.data.render.for_data import data_renderer
from qlora_cli.evaluate.contest import arrange
from qlora_cli.evaluate.evaluation import evaluate
from qlora_cli.evaluate.request import EvalRequest, prepare_tasks
from qlora_cli.evaluate.written import answer_rows
from qlora_cli.model.base import load_base
from qlora_cli.model.experts.packed import packed_experts
from qlora_cli.model.fingerprint import fingerprint_base
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.reader import dump_recipe
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.checkpoints import list_checkpoints
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.arguments import trainer_arguments
from qlora_cli.train.session import TrainOptions, train_recipe
from qlora_cli.train.setup import calibration_batches, make_collator, setup_model, setup_trainer
from qlora_cli.train.trainer import QloraTrainer, TrainerParts


def weights(recipe: Recipe, folder: Path) -> Any:
    """Class, attention, linear layers and experts of the base: how each is stored, and its bytes."""
    base = load_base(recipe.model, recipe.quantization)
    layers = []
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear):
            state = getattr(module.weight, "quant_state", None)
            storage = (state.quant_type, state.nested) if state is not None else None
            layers.append((name, type(module).__name__, str(module.weight.dtype), storage, module.weight.sum().item()))
        for fused, reader in packed_experts(module).items():
            layers.append((f"{name}.{fused}", reader.quant_state.quant_type, reader.quant_state.nested))
    return type(base).__name__, base.config._attn_implementation, layers


def identity(recipe: Recipe, folder: Path) -> Any:
    """Weights, vocabulary and fingerprint: three ways to the same model."""
    vocabulary = sorted(load_tokenizer(recipe.model).get_added_vocab())
    return weights(recipe, folder), vocabulary, fingerprint_base(recipe.model)


def prepared(recipe: Recipe) -> PreparedData:
    renderer = data_renderer(load_tokenizer(recipe.model), recipe.data)
    return prepare_data(recipe.data, renderer, recipe.training.seed)


def train_tokens(recipe: Recipe, folder: Path) -> Any:
    """Every training document with its labels."""
    return [(row.input_ids, row.labels) for row in prepared(recipe).train.all_documents()]


def eval_tokens(recipe: Recipe, folder: Path) -> Any:
    return [(row.input_ids, row.labels) for row in prepared(recipe).eval.all_documents()]


def training_texts(recipe: Recipe, folder: Path) -> Any:
    """Which rows are trained on how often, whatever they look like as tokens."""
    rows = prepared(recipe).train
    return sorted(map(str, (place for number in range(len(rows)) for place in rows.places(number))))


def adapter(recipe: Recipe, folder: Path) -> Any:
    """The trained adapter: modules, first values, and how it acts."""
    rows = calibration_batches(recipe, prepared(recipe).train, make_collator(recipe, load_tokenizer(recipe.model)))
    model = setup_model(recipe, RunDirectory(folder), is_resumed=False, calibration=rows)
    trained = [
        (name, str(parameter.dtype), tuple(parameter.shape), parameter.double().sum().item())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return trained, [(layer.scaling["default"], str(layer.lora_dropout["default"])) for layer in layers]


def codes(recipe: Recipe, folder: Path) -> Any:
    """Sum of the codes of each layer in integers, of the base that a run stands on."""
    rows = calibration_batches(recipe, prepared(recipe).train, make_collator(recipe, load_tokenizer(recipe.model)))
    model = setup_model(recipe, RunDirectory(folder), is_resumed=False, calibration=rows)
    return [module.codes.sum().item() for module in model.modules() if isinstance(module, IntegerLinear)]


def trainer(recipe: Recipe, folder: Path) -> QloraTrainer:
    run = RunDirectory(folder)
    tokenizer = load_tokenizer(recipe.model)
    model = setup_model(recipe, run, is_resumed=False)
    parts = TrainerParts(model, tokenizer, make_collator(recipe, tokenizer), prepared(recipe))
    return setup_trainer(recipe, run, parts, {})


def batches(recipe: Recipe, folder: Path) -> Any:
    """Every batch of an epoch, with its documents."""
    return [batch["position_ids"].tolist() for batch in trainer(recipe, folder).get_train_dataloader()]


def optimization(recipe: Recipe, folder: Path) -> Any:
    """Settings of the optimizer, and the learning rate of each of 40 steps."""
    made = trainer(recipe, folder)
    made.create_optimizer_and_scheduler(40)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in made.optimizer.param_groups]
    return groups, [made.lr_scheduler.lr_lambdas[0](step) for step in range(40)]


def optimizer_on_a_gpu(recipe: Recipe, folder: Path) -> Any:
    """Class and settings, where nothing has to give way because there is no GPU."""
    arguments = trainer_arguments(recipe, RunDirectory(folder), torch.float32, torch.device("cuda"))
    return QloraTrainer.get_optimizer_cls_and_kwargs(arguments)


def offloading_on_a_gpu(recipe: Recipe, folder: Path) -> Any:
    """Whether trl moves activations."""
    return trainer_arguments(recipe, RunDirectory(folder), torch.float32, torch.device("cuda")).activation_offloading


def trained(recipe: Recipe, folder: Path) -> Any:
    """A real run: its length, the steps in metrics.jsonl, its checkpoints, its trackers' files."""
    run = RunDirectory(folder / "run")
    result = train_recipe(recipe, run, TrainOptions())
    kinds = [(line["step"], "loss" in line, "eval_loss" in line) for line in read_metrics(run.metrics_path)]
    steps = [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints_path)]
    return result.max_steps, kinds, steps, sorted(path.name for path in run.path.iterdir())


def moments(recipe: Recipe, folder: Path) -> Any:
    """The optimizer's first moments after one step: a tenth of the clipped gradient."""
    made = trainer(recipe, folder)
    made.train()
    return sum(state["exp_avg"].square().sum().item() for state in made.optimizer.state.values())


def recomputing_layers(recipe: Recipe, folder: Path) -> Any:
    made = trainer(recipe, folder)
    made.train()
    return [
        module.gradient_checkpointing for module in made.model.modules() if hasattr(module, "gradient_checkpointing")
    ]


def eval_batch_sizes(recipe: Recipe, folder: Path) -> Any:
    """Rows that the model sees in one pass while its eval loss is measured."""
    made = trainer(recipe, folder)
    seen: list[int] = []
    made.model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    made.evaluate()
    return seen


def task_results(recipe: Recipe, folder: Path) -> Any:
    """What `qlora eval` would write down for the recipe's tasks."""
    source = TunedSource(folder, recipe.model, recipe=recipe)
    tasks, batch_size = prepare_tasks(source, EvalRequest())
    outcome = evaluate(arrange([source], None), tasks, batch_size)
    answers = {task: [*answer_rows(by_model)] for task, by_model in outcome.scores.items()}
    return outcome.as_dict()["measures"], answers


def tracker_project(recipe: Recipe, folder: Path) -> Any:
    return trainer_arguments(recipe, RunDirectory(folder), torch.float32, torch.device("cpu")).project


def default_run_directory(recipe: Recipe, folder: Path) -> Any:
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    base, data = Path("base").resolve(), Path("sums.jsonl").resolve()
    with contextlib.chdir(folder):
        places = ["--set", f"model.base_model={base}", "--set", f"data.train={data}"]
        ran = CliRunner().invoke(app, ["train", "recipe.yaml", *places], catch_exceptions=False)
        assert ran.exit_code == 0
        return [path.name for path in Path("runs").iterdir()]
