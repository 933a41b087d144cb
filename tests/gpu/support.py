"""Marks and helpers of the tests on a GPU."""

from __future__ import annotations

import ctypes

import pytest
import torch

from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.callbacks.progress import ProgressCallback
from qlora_cli.train.callbacks.stop import StopCallback, StopRequest
from qlora_cli.train.checkpoint.identity import run_identity
from qlora_cli.train.setup import make_collator, setup_model, setup_trainer
from qlora_cli.train.trainer import QloraTrainer, TrainerParts

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch finds none"),
]

IS_MANAGED = 8
"""CU_POINTER_ATTRIBUTE_IS_MANAGED in cuda.h."""


def build_trainer(recipe: Recipe, run: RunDirectory, *, stop_after: int | None = None) -> QloraTrainer:
    """The trainer that `train_recipe` would use, for tests that look inside it."""
    tokenizer = load_tokenizer(recipe.model)
    renderer = Renderer(tokenizer, train_on=recipe.data.train_on)
    tokenizer.chat_template = renderer.template
    prepared = prepare_data(recipe.data, renderer, recipe.training.seed)
    facts = run_identity(recipe, prepared, tokenizer)
    model = setup_model(recipe, run, is_resumed=False)
    callbacks = (
        ProgressCallback(run.metrics_path, prepared.report.num_tokens),
        StopCallback(StopRequest(), stop_after),
    )
    return setup_trainer(
        recipe, run, TrainerParts(model, tokenizer, make_collator(recipe, tokenizer), prepared, callbacks), facts
    )


def is_managed_memory(tensor: torch.Tensor) -> bool:
    """Whether the CUDA driver says that the tensor lies in memory that it pages between CPU and GPU."""
    answer = ctypes.c_uint32(0)
    driver = ctypes.CDLL("libcuda.so.1")
    pointer = ctypes.c_uint64(tensor.data_ptr())
    error = driver.cuPointerGetAttribute(ctypes.byref(answer), ctypes.c_int(IS_MANAGED), pointer)
    return error == 0 and bool(answer.value)
