"""Three tools: how to recognize their files, and their defaults where a key is left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qlora_cli.recipe.foreign_handlers import AXOLOTL, COMMON, LLAMA_FACTORY, TRL
from qlora_cli.recipe.foreign_outcome import Handler


@dataclass(frozen=True)
class Tool:
    """One tool's config files."""

    name: str
    handlers: dict[str, Handler]
    marks: frozenset[str]
    """Keys that no other of the tools has."""

    defaults: dict[str, Any] = field(default_factory=dict)
    """Our dotted keys -> what the tool takes where its file is silent; only what changes the training."""


TRAINER_DEFAULTS: dict[str, Any] = {
    "data.packing": False,
    "training.weight_decay": 0.0,
    "training.max_grad_norm": 1.0,
    "training.optim": "adamw_torch",
    "training.gradient_accumulation_steps": 1,
}
LINEAR: dict[str, Any] = {
    "training.lr_scheduler_type": "linear",
    "training.warmup_ratio": 0.0,
    "training.per_device_train_batch_size": 8,
}

TOOLS = (
    Tool(
        "axolotl",
        COMMON | AXOLOTL,
        frozenset(
            (
                "sequence_len",
                "sample_packing",
                "adapter",
                "datasets",
                "base_model",
                "num_epochs",
                "val_set_size",
                "lora_target_linear",
                "optimizer",
                "lr_scheduler",
                "dataset_prepared_path",
                "saves_per_epoch",
                "evals_per_epoch",
            )
        ),
        TRAINER_DEFAULTS
        | {
            "lora.lora_dropout": 0.0,
            "data.truncation": "drop",
            "training.lr_scheduler_type": "cosine",
            "training.per_device_train_batch_size": 1,
            "training.num_train_epochs": 1.0,
            "training.gradient_checkpointing": False,
        },
    ),
    Tool(
        "LLaMA-Factory",
        COMMON | LLAMA_FACTORY,
        frozenset(
            (
                "stage",
                "finetuning_type",
                "lora_rank",
                "lora_target",
                "cutoff_len",
                "template",
                "dataset_dir",
                "dataset",
                "val_size",
                "do_train",
                "quantization_bit",
                "model_class",
                "peft_config",
                "quant_config",
                "train_dataset",
            )
        ),
        TRAINER_DEFAULTS | LINEAR | {"lora.r": 8, "lora.lora_dropout": 0.0, "training.learning_rate": 5e-5},
    ),
    Tool(
        "TRL",
        COMMON | TRL,
        frozenset(
            (
                "dataset_name",
                "dataset_mixture",
                "dataset_mixer",
                "use_peft",
                "max_seq_length",
                "max_length",
                "torch_dtype",
                "dtype",
                "dataset_test_split",
                "dataset_train_split",
                "lora_target_modules",
                "use_bnb_nested_quant",
            )
        ),
        TRAINER_DEFAULTS
        | LINEAR
        | {"lora.r": 16, "lora.lora_dropout": 0.05, "training.learning_rate": 2e-5, "data.max_length": 1024},
    ),
)

KERNEL = "a kernel of another library"
FAMILIES = (
    ("liger_", KERNEL),
    ("cut_cross_entropy", KERNEL),
    ("lora_mlp_kernel", KERNEL),
    ("lora_qkv_kernel", KERNEL),
    ("lora_o_kernel", KERNEL),
    ("fused_", KERNEL),
    ("use_kernels", KERNEL),
    ("use_scattermoe", KERNEL),
    ("use_sonicmoe", KERNEL),
    ("experts_implementation", KERNEL),
    ("plugins", "kernels and hooks of axolotl"),
    ("eot_tokens", "the chat template says where a turn ends"),
    ("loss_watchdog_", "a loss that has left its level gives a warning; NaN stops the run"),
    ("lora_target_parameters", "name fused experts in 'lora.target_modules', such as experts.gate_up_proj"),
    ("chat_template", "the template comes with the tokenizer; a Jinja file in 'model.chat_template' replaces it"),
    ("unfrozen_parameters", "modules that are trained in full are listed in 'lora.modules_to_save'"),
    ("expert_parallel", "nothing is sharded here; each GPU holds the whole base"),
    ("context_para", "nothing is sharded here; each GPU holds the whole base"),
    ("fsdp", "nothing is sharded here; each GPU holds the whole base"),
    ("dp_", "nothing is sharded here; each GPU holds the whole base"),
    ("deepspeed", "nothing is sharded here; each GPU holds the whole base"),
    ("wandb_", "set the WANDB_* environment variables; 'tracking.project' names the project"),
    ("gptq_", "bitsandbytes quantizes here"),
    ("kt_", KERNEL),
    ("use_kt", KERNEL),
    ("ray_", "a run's processes are on one machine"),
    ("hub_", "push the folder that `qlora export` writes"),
    ("push_", "push the folder that `qlora export` writes"),
    ("swanlab_", "not a tracker here"),
    ("use_swanlab", "not a tracker here"),
    ("image_", "text only"),
    ("video_", "text only"),
    ("processor_", "text only"),
    ("freeze_", "text only"),
)
"""Beginnings of keys that have no counterpart, and why."""
