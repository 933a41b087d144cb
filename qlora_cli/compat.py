"""Work-arounds for faults of the libraries below us. Each says what breaks, where, and when it can go."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from transformers import PreTrainedModel


def keep_four_bit_weights_unpacked(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in place on CPUs with AVX512-BF16.

    What breaks: at the first forward pass without gradients `Linear4bit` replaces its packed weight by a layout
    for one CPU kernel. From then on `dequantize_4bit` returns garbage (a merged identity adapter ended at a KL
    divergence of 2.44) and a later training step leaves most adapters without a gradient, without an error.
    Seen in: bitsandbytes 0.50.2. Can go when: `dequantize_4bit` and backward accept the packed layout.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def adapter_dtypes_kept(model: nn.Module) -> Iterator[None]:
    """Keep trainable parameters as they are while an `SFTTrainer` is built.

    What breaks: on a quantized base `SFTTrainer.__init__` casts every adapter weight to bfloat16, which rounds
    initial values that PiSSA and LoftQ computed in float32 and overrides the recipe's choice of dtype.
    Seen in: trl 1.16.0 (`sft_trainer.py`, "converted to bf16"). Can go when: it honours `autocast_adapter_dtype`.
    """
    kept = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name]


def page_loaded_state(optimizer: Optimizer) -> None:
    """Put the state of a paged optimizer back into paged memory after `load_state_dict`, values unchanged.

    What breaks: a paged optimizer loads its state into plain GPU tensors. The numbers are right, but a resumed
    run then holds in GPU memory what the uninterrupted one can move out of it, and fails where that one fits.
    Seen in: bitsandbytes 0.50.2 (`Optimizer8bit.load_state_dict`). Can go when: it asks `get_state_buffer` for
    the memory, as it does for new state. Without effect on other optimizers; on CPU nothing is paged.

    Args:
        optimizer: just loaded; also wrapped as accelerate wraps it.
    """
    paged: Any = getattr(optimizer, "optimizer", optimizer)
    if not getattr(paged, "is_paged", False):
        return
    for parameter, values in paged.state.items():
        for name in ("state1", "state2"):
            if name in values:
                values[name] = paged.get_state_buffer(parameter, dtype=values[name].dtype).copy_(values[name])


def name_backbone(model: PreTrainedModel) -> None:
    """Let `model.base_model` be the part below the output head.

    What breaks: Llama 4's class names its backbone `language_model` and keeps it as `model`, so `base_model` is the
    whole model, and `SFTTrainer`, which computes the loss from the backbone's output, ends with an AttributeError.
    Seen in: transformers 5.23 (`Llama4ForCausalLM.base_model_prefix`). Can go when: name and attribute agree.
    """
    if model.base_model is model and hasattr(model, "model"):
        model.base_model_prefix = "model"


def import_bars_quietly() -> None:
    """Import tqdm, as transformers does, without its advice to install ipywidgets.

    What breaks: in a notebook without ipywidgets the first model that is loaded begins with "IProgress not found",
    about bars that are switched off here. Seen in: tqdm 4.70. Can go when: it says so when a bar is drawn.
    """
    if "ipykernel" in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module("tqdm.auto")


@contextmanager
def calm_lm_eval() -> Iterator[None]:
    """Keep lm-evaluation-harness from drawing bars of its own and from warning of what is meant so.

    What breaks: it draws a bar for each task's prompts and for the answers, with no way to switch the first off, and
    warns that a model was handed over loaded. Seen in: lm-eval 0.4.13. Can go when: `evaluate` takes `disable_tqdm`.
    """
    modules = [import_module(f"lm_eval.{name}") for name in ("api.task", "api.model", "models.huggingface")]
    bars = [module.tqdm for module in modules]
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    for module, bar in zip(modules, bars, strict=True):
        module.tqdm = _hidden(bar)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logger.setLevel(level)
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar  # type: ignore[attr-defined]


def _hidden(bar: Any) -> Any:
    return lambda *args, **options: bar(*args, **{**options, "disable": True})


def keep_imports_quiet() -> None:
    """Keep bitsandbytes from printing a warning when it is imported, before any log file can be open.

    What breaks: on CPUs with AVX512 each command that loads a model begins with "Failed to load CPU
    gemm_4bit_forward", about an optional package for a kernel that is switched off here
    (`keep_four_bit_weights_unpacked`). Seen in: bitsandbytes 0.50.2. Can go when: it says so only to those who ask for
    that kernel.
    """
    logging.getLogger("bitsandbytes").addHandler(logging.NullHandler())
