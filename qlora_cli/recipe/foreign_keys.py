"""Keys of other fine-tuning tools, and what this project calls them.

A value is the key used here, or a sentence that quotes the keys it names. A key that several tools share stands
under the one that is named first below.
"""

from __future__ import annotations

SEVERAL_GPUS = (
    "nothing is sharded: each of several GPUs holds the whole base, with "
    "`torchrun --nproc-per-node 2 -m qlora_cli train RECIPE`"
)
ANSWERS_ONLY = "only answers are trained unless you write 'data.train_on: all'"
BEST = "the best step is the one with the lowest eval loss; write 'training.load_best_model_at_end: true'"

FOREIGN_KEYS: dict[str, dict[str, str]] = {
    "axolotl": {
        "qalora": "lora.use_qalora",
        "qalora_group_size": "there is no counterpart: the groups are those of the base",
        "base_model_config": "the tokenizer and config come with 'model.base_model'",
        "model_type": "the architecture is read from the config of 'model.base_model'",
        "tokenizer_type": "the tokenizer comes with 'model.base_model'",
        "adapter": "every run trains an adapter; 4-bit QLoRA is chosen by the section 'quantization'",
        "load_in_4bit": "write 'quantization.quant_type: nf4' (or fp4)",
        "load_in_8bit": "write 'quantization.quant_type: int8'",
        "sequence_len": "data.max_length",
        "sample_packing": "data.packing",
        "eval_sample_packing": "'data.packing' holds for training and evaluation",
        "pad_to_sequence_len": "rows are padded to the longest of a batch; 'data.packing' fills them",
        "datasets": "data.train",
        "type": "data.train.format",
        "field_instruction": "write 'data.train.columns', for example `{instruction: column}`",
        "test_datasets": "data.eval",
        "val_set_size": "data.eval_fraction",
        "micro_batch_size": "training.per_device_train_batch_size",
        "eval_batch_size": "eval.per_device_eval_batch_size",
        "num_epochs": "training.num_train_epochs",
        "lora_model_dir": "runs start from a new adapter; a stopped run continues with `qlora train --resume`",
        "lora_target_linear": "write 'lora.target_modules: all-linear'",
        "lora_modules_to_save": "lora.modules_to_save",
        "peft_use_dora": "lora.use_dora",
        "peft_use_rslora": "lora.use_rslora",
        "peft_init_lora_weights": "lora.init_lora_weights",
        "train_on_inputs": ANSWERS_ONLY,
        "dataset_prepared_path": "prepared rows are cached anyway; the environment variable QLORA_CACHE says where",
        "warmup_steps": "write the warm-up as a share of all steps: 'training.warmup_ratio'",
        "lr_scheduler": "training.lr_scheduler_type",
        "flash_attention": "write 'model.attn_implementation: flash_attention_2'",
        "sdp_attention": "write 'model.attn_implementation: sdpa'",
        "xformers_attention": "there is no counterpart; choose a kernel with 'model.attn_implementation'",
        "saves_per_epoch": "write 'training.save_strategy: epoch', or 'training.save_steps' with `steps`",
        "evals_per_epoch": "write 'eval.eval_strategy: epoch', or 'eval.eval_steps' with `steps`",
        "wandb_project": "write 'tracking.report_to: [wandb]' and 'tracking.project'",
        "wandb_entity": "set the environment variable WANDB_ENTITY; 'tracking.project' names the project",
        "wandb_run_id": "the run in W&B takes the 'name' of the recipe",
        "wandb_name": "name",
        "special_tokens": "the special tokens come with the tokenizer of 'model.base_model'",
        "bf16": "write 'model.dtype: bfloat16'",
        "fp16": "write 'model.dtype: float16'",
        "tf32": "there is no counterpart; 'model.dtype' sets the precision",
        "deepspeed": SEVERAL_GPUS,
        "fsdp": SEVERAL_GPUS,
        "fsdp_config": SEVERAL_GPUS,
        "gradient_accumulation": "training.gradient_accumulation_steps",
        "optimizer": "training.optim",
    },
    "LLaMA-Factory": {
        "model_name_or_path": "model.base_model",
        "model_revision": "model.revision",
        "adapter_name_or_path": "runs start from a new adapter; a stopped run continues with `qlora train --resume`",
        "stage": "there is no counterpart: every run is supervised fine-tuning",
        "do_train": "`qlora train` trains; there is no key for it",
        "do_eval": "`qlora eval` evaluates; while training, 'eval.eval_strategy' does",
        "finetuning_type": "every run trains an adapter; 4-bit QLoRA is chosen by the section 'quantization'",
        "lora_rank": "lora.r",
        "lora_target": "lora.target_modules",
        "additional_target": "lora.modules_to_save",
        "pissa_init": "write 'lora.init_lora_weights: pissa'",
        "cutoff_len": "data.max_length",
        "dataset": "data.train",
        "dataset_dir": "write the full path in 'data.train'",
        "eval_dataset": "data.eval",
        "val_size": "data.eval_fraction",
        "max_samples": "there is no counterpart; 'data.train.weight' below 1 takes a random part of a source",
        "template": "the template comes with the tokenizer; a Jinja file in 'model.chat_template' replaces it",
        "quantization_bit": "write 'quantization.quant_type': nf4 for 4 bits, int8 for 8",
        "quantization_method": "the quantization is bitsandbytes; 'quantization.quant_type' chooses its kind",
        "flash_attn": "model.attn_implementation",
        "overwrite_output_dir": "write `qlora train RECIPE --overwrite` to start over",
        "plot_loss": "metrics.jsonl holds the curve; 'tracking.report_to' sends it to a tracker",
        "mask_history": "write 'data.train_on: last_turn'",
        "compute_type": "model.dtype",
    },
    "TRL and the Hugging Face Trainer": {
        "output_dir": "the run directory is runs/<name>: set 'name', or --run-dir on the command line",
        "logging_dir": "the log is in the run directory runs/<name>; set 'name'",
        "run_name": "name",
        "max_seq_length": "data.max_length",
        "max_seq_len": "data.max_length",
        "dataset_text_field": "write 'data.train.columns', for example `{text: column}`",
        "dataset_name": "data.train",
        "dataset_config": "data.train.subset",
        "train_file": "data.train",
        "validation_file": "data.eval",
        "validation": "data.eval",
        "val": "data.eval",
        "assistant_only_loss": ANSWERS_ONLY,
        "completion_only_loss": ANSWERS_ONLY,
        "padding_free": "there is no counterpart; 'data.packing' leaves no padding to save",
        "packing_strategy": "there is no counterpart; 'data.packing' is on or off",
        "eval_packing": "'data.packing' holds for training and evaluation",
        "per_device_batch_size": "training.per_device_train_batch_size",
        "per_gpu_train_batch_size": "training.per_device_train_batch_size",
        "train_batch_size": "training.per_device_train_batch_size",
        "batch_size": "training.per_device_train_batch_size",
        "epochs": "training.num_train_epochs",
        "lr": "training.learning_rate",
        "evaluation_strategy": "eval.eval_strategy",
        "eval_accumulation_steps": "there is no counterpart; lower 'eval.per_device_eval_batch_size'",
        "logging_strategy": "write 'training.logging_steps'",
        "data_seed": "'training.seed' orders the data too",
        "dataloader_num_workers": "there is no counterpart: rows are ready before step 1",
        "remove_unused_columns": "there is no counterpart: 'data.train.columns' says which columns are read",
        "group_by_length": "there is no counterpart; 'data.packing' fills every row",
        "push_to_hub": "there is no counterpart: push the folder that `qlora export` writes",
        "hub_token": "a recipe holds no secrets; set the environment variable HF_TOKEN",
        "resume_from_checkpoint": "write `qlora train RECIPE --resume`",
        "gradient_checkpointing_kwargs": "no choice of method; 'training.gradient_checkpointing' is on or off",
        "torch_dtype": "model.dtype",
        "torch_compile": "there is no counterpart: 4-bit layers are not compiled",
        "use_liger_kernel": "there is no counterpart; 'model.attn_implementation' chooses the attention kernel",
        "label_smoothing_factor": "there is no counterpart; 'training.neftune_noise_alpha' regularizes",
        "metric_for_best_model": BEST,
        "greater_is_better": BEST,
        "save_only_model": "there is no counterpart; 'training.save_total_limit: 1' keeps one checkpoint",
        "logging_first_step": "write 'training.logging_steps: 1' to log every step",
        "adam_beta_1": "training.adam_beta1",
        "adam_beta_2": "training.adam_beta2",
    },
    "PEFT and transformers": {
        "rank": "lora.r",
        "alpha": "lora.lora_alpha",
        "dropout": "lora.lora_dropout",
        "lora_alfa": "lora.lora_alpha",
        "bias": "there is no counterpart: adapters train no bias",
        "task_type": "there is no counterpart: every run trains a causal language model",
        "peft_type": "there is no counterpart: every adapter is LoRA; 'lora.use_dora' makes it DoRA",
        "loftq_config": "write 'lora.init_lora_weights: loftq'",
        "rank_pattern": "there is no counterpart: 'lora.r' holds for every module",
        "layers_to_transform": "there is no counterpart; name modules in 'lora.target_modules'",
        "exclude_modules": "there is no counterpart; name the modules you want in 'lora.target_modules'",
        "quantization_config": "the section 'quantization'",
        "bnb_4bit_quant_type": "quantization.quant_type",
        "bnb_4bit_use_double_quant": "quantization.double_quant",
        "bnb_4bit_compute_dtype": "model.dtype",
        "bnb_4bit_quant_storage": "there is no counterpart: weights are stored as bytes",
        "llm_int8_skip_modules": "quantization.skip_modules",
        "llm_int8_threshold": "there is no counterpart; 'quantization.skip_modules' keeps modules in 16 bit",
        "device_map": "there is no counterpart: the base model is on one device",
    },
    "the original qlora.py": {
        "lora_r": "lora.r",
        "lora_modules": "lora.target_modules",
        "source_max_len": "prompt and answer share 'data.max_length'",
        "target_max_len": "prompt and answer share 'data.max_length'",
        "dataset_format": "data.train.format",
        "eval_dataset_size": "write a share of the rows: 'data.eval_fraction'",
        "max_train_samples": "there is no counterpart; 'data.train.weight' below 1 takes a random part of a source",
        "max_eval_samples": "there is no counterpart; 'eval.tasks.limit' shortens a task",
        "train_on_source": ANSWERS_ONLY,
        "full_finetune": "there is no counterpart: every run trains an adapter",
        "max_memory_MB": "there is no counterpart: the base model is on one device",
        "do_mmlu_eval": "there is no counterpart; 'eval.tasks' measures on your own questions",
    },
    "Unsloth": {
        "lora_target_modules": "lora.target_modules",
        "use_gradient_checkpointing": "training.gradient_checkpointing",
        "random_state": "training.seed",
        "load_in_16bit": "leave the section 'quantization' out",
        "full_finetuning": "there is no counterpart: every run trains an adapter",
        "model_name": "model.base_model",
    },
}


def counterpart(key: str, tool: str = "") -> str:
    """The value of the tables for a key, that of the named tool first; empty where no tool is known to use it.

    >>> counterpart("use_dora"), counterpart("batch_size", "axolotl")
    ('', 'training.per_device_train_batch_size')
    """
    tables = (FOREIGN_KEYS.get(tool, {}), *FOREIGN_KEYS.values())
    return next((keys[key] for keys in tables if key in keys), "")


def foreign_hint(key: str) -> str:
    """Hint on what to write here for another tool's `key`; empty where no tool is known to use it.

    >>> foreign_hint("lora_rank")
    "'lora_rank' of LLaMA-Factory is written 'lora.r' here"
    """
    for tool, keys in FOREIGN_KEYS.items():
        if key in keys:
            is_key = " " not in keys[key]
            return f"'{key}' of {tool}" + (f" is written '{keys[key]}' here" if is_key else f": {keys[key]}")
    return ""
