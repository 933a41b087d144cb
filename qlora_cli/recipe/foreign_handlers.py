"""The handler of each key of axolotl, LLaMA-Factory and TRL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from qlora_cli.recipe.foreign_keys import counterpart
from qlora_cli.recipe.foreign_outcome import Config, Handler, Outcome, coerced, is_on, refuse
from qlora_cli.recipe.foreign_sources import (
    axolotl_sources,
    hub_sources,
    llama_factory_sources,
    mixture,
    test_split,
)
from qlora_cli.recipe.foreign_values import (
    UNKNOWN,
    activations,
    copy_to,
    epochs,
    interval,
    lost,
    max_steps,
    needless,
    only,
    precision,
    same_key,
    share_of_rows,
    strategy,
    switch,
    targets,
    times_an_epoch,
    trackers,
    warmup_steps,
    words,
)

OPTIMIZERS = {
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_hf": "adamw_torch",
    "adamw": "adamw_torch",
    "paged_adamw": "paged_adamw_32bit",
}
KERNELS = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "disabled": "eager", "auto": "sdpa"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
NF4, INT8 = {"quantization.quant_type": "nf4"}, {"quantization.quant_type": "int8"}
SPEED = needless("how fast rows are made ready; they are ready before step 1 here")
PREFERENCES = "trains on preferences or rewards; here every run is supervised fine-tuning"


def quantization_bit(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """4 and 8 bits are bitsandbytes' own."""
    kinds = {"4": NF4, "8": INT8}
    if str(value) not in kinds:
        raise refuse(key, value, "is not a width of bitsandbytes, which has 4 and 8 bits")
    yield Outcome(key, value, dict(kinds[str(value)]))


def axolotl_adapter(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """`qlora` stands for a base in 4 bits, whatever the other keys are."""
    if str(value) not in ("lora", "qlora"):
        raise refuse(key, value, "is no LoRA")
    if value == "qlora" and not is_on(config.get("load_in_8bit")):
        yield Outcome(key, value, dict(NF4))
    else:
        yield Outcome(key, value, why="every run trains an adapter", is_needless=True)


def rows_of_a_step(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """axolotl's `batch_size`: rows of a step, which stand for `gradient_accumulation_steps` where it is not there."""
    rows, at_once = (coerced("lora.r", number) for number in (value, config.get("micro_batch_size")))
    if config.get("gradient_accumulation_steps") is not None:
        yield Outcome(key, value, why="'gradient_accumulation_steps' decides", is_needless=True)
    elif isinstance(rows, int) and isinstance(at_once, int) and at_once > 0 and rows % at_once == 0:
        yield Outcome(key, value, {"training.gradient_accumulation_steps": rows // at_once})
    else:
        yield Outcome(key, value, why="no multiple of the rows of a pass; write 'training.gradient_accumulation_steps'")


def answers_only(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """Whether prompts are trained too."""
    if is_on(value):
        yield Outcome(key, value, why="only the assistant's words are trained here too", is_needless=True)
    else:
        yield Outcome(key, value, {"data.train_on": "all"})


def chat_template(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """A name of the tool's own, or a template's text; only a file has a counterpart."""
    if str(value) in ("tokenizer_default", "default", "empty"):
        yield Outcome(key, value, why="the template comes with the tokenizer", is_needless=True)
    elif "\n" not in str(value) and len(str(value)) < 256 and os.path.isfile(str(value)):
        yield Outcome(key, value, {"model.chat_template": str(value)})
    else:
        yield Outcome(
            key, value, why="the template comes with the tokenizer; a file in 'model.chat_template' replaces it"
        )


def base_settings(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """axolotl's `bnb_config_kwargs` and LLaMA-Factory's `quant_config`."""
    meant = {"quantization_bit": quantization_bit, "name": only(("bnb", "auto"), "is another quantization")}
    yield from _nested(key, value, config, meant)


def peft_settings(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """LLaMA-Factory's `peft_config`."""
    meant = {"name": only(("lora",), "is no LoRA"), "target_modules": targets}
    yield from _nested(key, value, config, meant)


def _nested(key: str, value: Any, config: Config, meant: dict[str, Handler]) -> Iterator[Outcome]:
    """Keys inside a key: those that have a handler there, then those that mean the same everywhere."""
    for name, part in (value if isinstance(value, dict) else {}).items():
        ours = same_key(name)
        handler = meant.get(name) or (copy_to(ours) if ours else lost(counterpart(name) or UNKNOWN))
        if part is not None:
            yield from handler(f"{key}.{name}", part, config)


COMMON: dict[str, Handler] = {
    "num_train_epochs": epochs,
    "max_steps": max_steps,
    "warmup_steps": warmup_steps,
    "save_steps": interval("save"),
    "eval_steps": interval("eval"),
    "save_strategy": strategy("save"),
    "eval_strategy": strategy("eval"),
    "evaluation_strategy": strategy("eval"),
    "report_to": trackers,
    "chat_template": chat_template,
    "chat_template_path": chat_template,
    "template": chat_template,
    "bf16": precision("bfloat16"),
    "fp16": precision("float16"),
    "bfloat16": precision("bfloat16"),
    "float16": precision("float16"),
    "optim": words("training.optim", OPTIMIZERS),
    "load_in_4bit": switch(NF4),
    "load_in_8bit": switch(INT8),
    "gradient_checkpointing": activations,
    "gradient_checkpointing_kwargs": needless("layers are recomputed without re-entrance, which is what PEFT needs"),
    "use_tensorboard": switch({"tracking.report_to": ["tensorboard"]}),
    "early_stopping_patience": copy_to("training.early_stopping_patience"),
    "metric_for_best_model": only(("loss", "eval_loss"), "is not measured while training; only the eval loss is"),
    "overwrite_output_dir": needless("`--overwrite` starts a run over"),
    "output_dir": needless("the run goes to runs/<name>"),
    "logging_strategy": needless("'training.logging_steps' says how often"),
    "remove_unused_columns": needless("columns are chosen by their names"),
    "dataloader_num_workers": SPEED,
    "dataloader_pin_memory": SPEED,
    "dataloader_prefetch_factor": SPEED,
    "preprocessing_num_workers": SPEED,
    "dataset_processes": SPEED,
    "dataset_num_proc": SPEED,
    "ddp_timeout": needless("a process that ends is noticed immediately"),
    "ddp_find_unused_parameters": needless("gradients are added up once a step, whichever there are"),
    "save_safetensors": needless("nothing is ever pickled"),
    "low_cpu_mem_usage": needless("weights are always loaded so"),
    "local_rank": needless("the launcher says it"),
}

AXOLOTL: dict[str, Handler] = {
    "adapter": axolotl_adapter,
    "rl": only((), PREFERENCES),
    "reward_model": only(("false",), PREFERENCES),
    "gptq": only(("false",), "is another quantization; here it is bitsandbytes"),
    "datasets": axolotl_sources("data.train"),
    "test_datasets": axolotl_sources("data.eval"),
    "val_set_size": share_of_rows,
    "num_epochs": epochs,
    "batch_size": rows_of_a_step,
    "saves_per_epoch": times_an_epoch("save"),
    "evals_per_epoch": times_an_epoch("eval"),
    "optimizer": words("training.optim", OPTIMIZERS),
    "lr_scheduler": copy_to("training.lr_scheduler_type"),
    "adam_eps": copy_to("training.adam_epsilon"),
    "revision_of_model": copy_to("model.revision"),
    "lora_target_modules": targets,
    "lora_target_linear": switch({"lora.target_modules": "all-linear"}),
    "lora_r": copy_to("lora.r"),
    "flash_attention": switch({"model.attn_implementation": "flash_attention_2"}),
    "sdp_attention": switch({"model.attn_implementation": "sdpa"}),
    "eager_attention": switch({"model.attn_implementation": "eager"}),
    "train_on_inputs": switch({"data.train_on": "all"}, "only the assistant's words are trained here too"),
    "dataset_exact_deduplication": switch({"data.clean.dedupe": "exact"}),
    "dataset_prepared_path": needless("prepared rows are cached; the environment variable QLORA_CACHE says where"),
    "pad_to_sequence_len": needless("rows are padded to the longest of a batch"),
    "bnb_config_kwargs": base_settings,
    "wandb_project": lambda key, value, config: iter(
        [Outcome(key, value, {"tracking.report_to": ["wandb"], "tracking.project": str(value)})]
    ),
    "model_type": needless("the architecture is read from the base's config"),
    "tokenizer_type": needless("the tokenizer comes with the base"),
    "base_model_config": needless("the config comes with the base"),
    "quantize_moe_experts": copy_to("quantization.experts"),
    "resize_token_embeddings_to_32x": lost("the embeddings stay as the base has them"),
    "group_by_length": lost("there is no counterpart; 'data.packing' fills every row"),
}

LLAMA_FACTORY: dict[str, Handler] = {
    "stage": only(("sft", "pt"), PREFERENCES),
    "finetuning_type": only(("lora", "qlora"), "trains the base's own weights; here every run trains an adapter"),
    "do_train": needless("`qlora train` trains"),
    "do_predict": lost("`qlora eval` measures, with the tasks of 'eval.tasks'"),
    "model": copy_to("model.base_model"),
    "dataset": llama_factory_sources("data.train"),
    "eval_dataset": llama_factory_sources("data.eval"),
    "dataset_dir": needless("it is part of the paths of 'data.train'"),
    "val_size": share_of_rows,
    "quantization_bit": quantization_bit,
    "quantization_method": only(("bnb", "bitsandbytes"), "is another quantization; here it is bitsandbytes"),
    "quantization_type": copy_to("quantization.quant_type"),
    "double_quantization": copy_to("quantization.double_quant"),
    "quant_config": base_settings,
    "peft_config": peft_settings,
    "lora_target": targets,
    "flash_attn": words("model.attn_implementation", KERNELS),
    "pure_bf16": switch({"model.dtype": "bfloat16", "lora.autocast_adapter_dtype": False}),
    "disable_gradient_checkpointing": switch({"training.gradient_checkpointing": False}),
    "train_on_prompt": switch({"data.train_on": "all"}, "only the assistant's words are trained here too"),
    "mask_history": switch({"data.train_on": "last_turn"}, "every turn of the assistant is trained here too"),
    "neat_packing": switch({"data.packing": True}),
    "pissa_init": switch({"lora.init_lora_weights": "pissa"}),
    "compute_type": words("model.dtype", DTYPES),
    "micro_batch_size": copy_to("training.per_device_train_batch_size"),
    "overwrite_cache": needless("what is cached is known by all that shapes it"),
    "plot_loss": needless("metrics.jsonl holds the curve"),
    "use_dora": copy_to("lora.use_dora"),
}

TRL: dict[str, Handler] = {
    "use_peft": only(("true",), "trains the base's own weights; here every run trains an adapter"),
    "dataset_name": hub_sources("data.train", "dataset_train_split"),
    "dataset_config": needless("it stands beside the dataset's name"),
    "dataset_train_split": needless("it stands beside the dataset's name"),
    "dataset_test_split": test_split,
    "dataset_mixture": mixture,
    "lora_target_modules": targets,
    "lora_r": copy_to("lora.r"),
    "lora_modules_to_save": copy_to("lora.modules_to_save"),
    "use_bnb_nested_quant": copy_to("quantization.double_quant"),
    "torch_dtype": words("model.dtype", DTYPES),
    "dtype": words("model.dtype", DTYPES),
    "assistant_only_loss": answers_only,
    "completion_only_loss": answers_only,
}
