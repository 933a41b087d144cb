"""The table of what we need of the libraries below us that they do not promise to keep; `upstream.py` checks it.

A row: what we do with the name, the name below the row's module, and what of ours needs it. Some names only objects
have, and no class, and some are texts: there the fourth place is a function of the library that must hold them.
"""

from __future__ import annotations

from qlora_cli.upstream_row import Name, Road, Use

Row = tuple[Use, str, str] | tuple[Use, str, str, str]


def _rows(road: Road, module: str, *rows: Row) -> tuple[Name, ...]:
    return tuple(Name(road, module, *row) for row in rows)


RESUME = "exact resume"
SEVERAL = "training in several processes"
PAGED = "the resume of a paged optimizer"
FOUR_BIT = "a 4-bit base"
EXPERTS = "experts in 4 bit"
INT8 = "an int8 base"
INTEGERS = "a base in integers"
STORED = "a base that is stored by bitsandbytes"
DEQUANTIZE = "dequantizing a base"
MASK = "the loss mask"
MERGE = "merging an adapter"
TRACE = "tracing a step"

OPERATORS = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_cudnn_attention_backward",
    "_scaled_dot_product_attention_math",
    "_fused_adamw_",
    "_grouped_mm",
    "_to_copy",
)
"""Those of torch that have rules of ours in a trace, and no promise in their names."""

BNB_QUANTIZER = "quantizers.quantizer_bnb_4bit.Bnb4BitHfQuantizer"

NAMES = (
    *_rows(
        Road.TRAINING,
        "transformers",
        (Use.OVERRIDDEN, "Trainer._init_training_state", "a resume with other intervals of saving"),
        (Use.OVERRIDDEN, "Trainer._run_epoch", "a resume of a run that its evaluation has ended"),
        (Use.OVERRIDDEN, "Trainer._maybe_log_save_evaluate", "the logged loss of several processes"),
        (Use.OVERRIDDEN, "Trainer._get_num_items_in_batch", SEVERAL),
        (Use.OVERRIDDEN, "Trainer._get_grad_norm", "stopping before an update that is not finite"),
        (Use.OVERRIDDEN, "Trainer._save_checkpoint", "saving whole checkpoints"),
        (Use.OVERRIDDEN, "Trainer._load_from_checkpoint", RESUME),
        (Use.OVERRIDDEN, "Trainer._load_optimizer_and_scheduler", RESUME),
        (Use.OVERRIDDEN, "Trainer._load_scaler", "exact resume in float16"),
        (Use.OVERRIDDEN, "Trainer._load_rng_state", RESUME),
        (Use.OVERRIDDEN, "Trainer.create_optimizer", "lora.loraplus_lr_ratio"),
        (Use.OVERRIDDEN, "Trainer.get_train_dataloader", SEVERAL),
        (Use.OVERRIDDEN, "Trainer.training_step", "stopping before an update that is not finite"),
        (Use.OVERRIDDEN, "Trainer.evaluate", "the eval loss"),
        (Use.CALLED, "Trainer._get_dataloader", SEVERAL),
        (Use.CALLED, "Trainer.get_optimizer_cls_and_kwargs", "lora.loraplus_lr_ratio"),
        (Use.CALLED, "Trainer.get_decay_parameter_names", "lora.loraplus_lr_ratio"),
        (Use.TRUSTED, "TrainingArguments.get_warmup_steps", "training.warmup_ratio"),
        (Use.READ, "trainer.TRAINER_STATE_NAME", RESUME),
        (Use.WRITTEN, "_tr_loss", RESUME, "Trainer._run_epoch"),
        (Use.WRITTEN, "_globalstep_last_logged", RESUME, "Trainer._maybe_log_save_evaluate"),
        (Use.READ, "_train_batch_size", SEVERAL, "Trainer.get_train_dataloader"),
        (Use.WRITTEN, "current_gradient_accumulation_steps", "a step in smaller passes", "Trainer.training_step"),
        (Use.WRITTEN, "_n_gpu", "training on one of several GPUs", "TrainingArguments.n_gpu"),
    ),
    Name(
        *(Road.TRAINING, "transformers", Use.CALLED, "Trainer.set_initial_training_values"),
        "resuming a run that is finished",
        returns_last="max_steps",
    ),
    *_rows(
        Road.TRAINING,
        "trl",
        (Use.WRITTEN, "_metrics", RESUME, "SFTTrainer.log"),
        (Use.WRITTEN, "mean_token_accuracy", RESUME, "SFTTrainer.compute_loss"),
    ),
    *_rows(
        Road.TRAINING,
        "torch.optim.lr_scheduler",
        (Use.WRITTEN, "_last_lr", "the learning rate after a resume", "LambdaLR.get_last_lr"),
    ),
    *_rows(
        Road.TRAINING,
        "accelerate",
        (Use.WRITTEN, "LOCAL_RANK", SEVERAL, "PartialState._prepare_backend"),
        (Use.WRITTEN, "WORLD_SIZE", SEVERAL, "PartialState._prepare_backend"),
        (Use.CALLED, "data_loader.SeedableRandomSampler", SEVERAL),
    ),
    *_rows(
        Road.TRAINING,
        "bitsandbytes.optim.optimizer",
        (Use.READ, "is_paged", PAGED, "Optimizer8bit.__init__"),
        (Use.CALLED, "Optimizer8bit.get_state_buffer", PAGED),
    ),
    *_rows(
        Road.TEMPLATES,
        "transformers.utils.chat_template_utils",
        (Use.CALLED, "_compile_jinja_template", MASK),
        (Use.CALLED, "_alias_reasoning_fields", "rendering chats as inference does"),
        (Use.READ, "_generation_support", "a template with generation blocks", "_cached_compile_jinja_template"),
    ),
    *_rows(
        Road.TEMPLATES,
        "jinja2",
        (Use.CALLED, "Environment.make_globals", MASK),
        (Use.CALLED, "Template.new_context", MASK),
        (Use.CALLED, "root_render_func", MASK, "Template.render"),
    ),
    *_rows(
        Road.BASE,
        "transformers",
        (Use.WRITTEN, "PreTrainedConfig._attn_implementation", "model.attn_implementation"),
        (Use.READ, "PreTrainedModel._hf_peft_config_loaded", "refusing a base with an adapter beside it"),
        (Use.WRITTEN, "PreTrainedModel.base_model_prefix", "training Llama 4"),
        (Use.CALLED, "quantizers.base.get_keys_to_not_convert", "quantization.skip_modules"),
        (Use.READ, "PreTrainedModel._keep_in_fp32_modules", STORED),
        (Use.READ, "PreTrainedModel._keep_in_fp32_modules_strict", STORED),
        (Use.TRUSTED, "update_weight_conversions", DEQUANTIZE, "conversion_mapping.get_model_conversion_mapping"),
    ),
    *_rows(
        Road.BASE,
        "transformers.core_model_loading",
        (Use.WRITTEN, "quantization_operation", DEQUANTIZE, "WeightConverter.convert"),
        (Use.WRITTEN, "_weight_conversions", DEQUANTIZE, "revert_weight_conversion"),
        (Use.WRITTEN, "HF_DEACTIVATE_ASYNC_LOAD", DEQUANTIZE, "convert_and_load_state_dict_in_model"),
    ),
    *_rows(
        Road.BASE,
        "transformers.integrations.finegrained_fp8",
        (Use.TRUSTED, "_dequantize_one", DEQUANTIZE, "Fp8Dequantize.convert"),
    ),
    *_rows(
        Road.BASE,
        "transformers.quantizers.base",
        (Use.TRUSTED, "_convert_model_for_quantization", DEQUANTIZE, "HfQuantizer.preprocess_model"),
        (Use.TRUSTED, "_process_model_before_weight_loading", DEQUANTIZE, "HfQuantizer.preprocess_model"),
        (Use.TRUSTED, "_process_model_after_weight_loading", DEQUANTIZE, "HfQuantizer.postprocess_model"),
    ),
    *_rows(
        Road.QUANTIZED,
        "bitsandbytes",
        (Use.WRITTEN, "support_avx512bf16_for_cpu", FOUR_BIT, "nn.Linear4bit.forward"),
        (Use.READ, "quant_state", FOUR_BIT, "nn.Linear4bit.forward"),
        (Use.READ, "state2", "double quantization", "functional.QuantState.__init__"),
        (Use.CALLED, "functional.dequantize_4bit", FOUR_BIT),
        (Use.READ, "SCB", INT8, "nn.Int8Params.__new__"),
        (Use.WRITTEN, "compute_type_is_set", FOUR_BIT, "nn.Linear4bit.forward"),
        (Use.READ, "MatmulLtState.SCB", INT8),
        (Use.WRITTEN, "MatmulLtState.threshold", INT8),
    ),
    *_rows(
        Road.QUANTIZED,
        "transformers",
        (Use.OVERRIDDEN, f"{BNB_QUANTIZER}._process_model_before_weight_loading", EXPERTS),
        (Use.OVERRIDDEN, f"{BNB_QUANTIZER}._process_model_after_weight_loading", EXPERTS),
        (Use.TRUSTED, "param_needs_quantization", EXPERTS, "core_model_loading.convert_and_load_state_dict_in_model"),
        (Use.TRUSTED, "get_quantize_ops", EXPERTS, "core_model_loading.convert_and_load_state_dict_in_model"),
        (Use.TRUSTED, "integrations.bitsandbytes.Bnb4bitQuantize.convert", EXPERTS),
    ),
    *_rows(
        Road.QUANTIZED,
        "transformers",
        (Use.OVERRIDDEN, "quantizers.base.HfQuantizer._process_model_before_weight_loading", INTEGERS),
        (Use.CALLED, "quantizers.auto.register_quantizer", INTEGERS),
        (Use.CALLED, "quantizers.auto.register_quantization_config", INTEGERS),
        (Use.CALLED, "quantizers.quantizers_utils.should_convert_module", INTEGERS),
    ),
    *_rows(
        Road.QUANTIZED,
        "peft",
        (Use.WRITTEN, "tuners.lora.layer.ParamWrapper._activate_lora", "an adapter on experts in 4 bit"),
        (Use.CALLED, "LoraConfig._register_custom_module", INTEGERS),
        (Use.OVERRIDDEN, "tuners.lora.layer.Linear.resolve_lora_variant", INTEGERS),
        (Use.CALLED, "tuners.lora.variants.QALoraLinearVariant.forward", INTEGERS),
    ),
    *_rows(
        Road.MERGE,
        "peft",
        (
            Use.READ,
            "_did_swap_in_out_features",
            "merging an adapter on experts",
            "tuners.lora.layer.ParamWrapper.__init__",
        ),
        (Use.READ, "lora_variant", MERGE, "tuners.lora.LoraLayer.__init__"),
        (Use.READ, "lora_bias", MERGE, "tuners.lora.LoraLayer.__init__"),
        (Use.READ, "use_dora", MERGE, "tuners.lora.LoraLayer.__init__"),
        (Use.READ, "lora_magnitude_vector", MERGE, "tuners.lora.LoraLayer.__init__"),
        (Use.READ, "scaling", MERGE, "tuners.lora.LoraLayer.__init__"),
        (Use.READ, "utils.other.AuxiliaryTrainingWrapper", MERGE),
        (Use.READ, "utils.other.ModulesToSaveWrapper", MERGE),
    ),
    *_rows(
        Road.MERGE,
        "transformers",
        (Use.CALLED, "conversion_mapping.get_model_conversion_mapping", MERGE),
        (Use.CALLED, "core_model_loading.rename_source_key", MERGE),
        (Use.CALLED, "core_model_loading.revert_weight_conversion", MERGE),
        (Use.CALLED, "core_model_loading.dot_natural_key", MERGE),
        (Use.READ, "_from_model_config", MERGE, "GenerationConfig.__init__"),
    ),
    *_rows(
        Road.MERGE,
        "transformers.integrations.bitsandbytes",
        (Use.READ, "source_cls", "merging into GPT-2", "replace_with_bnb_linear"),
    ),
    *_rows(
        Road.PLAN,
        "transformers",
        (Use.CALLED, "integrations.bitsandbytes.replace_with_bnb_linear", TRACE),
        (Use.CALLED, "quantizers.base.HfQuantizer.get_modules_to_not_convert", TRACE),
        (Use.READ, "integrations.sdpa_attention.sdpa_attention_forward", TRACE),
    ),
    *_rows(
        Road.PLAN,
        "peft.tuners.lora.model",
        (Use.WRITTEN, "is_loaded_in_4bit", TRACE, "LoraModel._create_and_replace"),
        (Use.WRITTEN, "is_loaded_in_8bit", TRACE, "LoraModel._create_and_replace"),
    ),
    *_rows(
        Road.PLAN,
        "torch",
        (Use.CALLED, "_subclasses.fake_tensor.FakeTensor", TRACE),
        (Use.CALLED, "_subclasses.fake_tensor.FakeTensorMode", TRACE),
        (Use.CALLED, "_subclasses.fake_tensor.in_kernel_invocation_manager", TRACE),
        (Use.CALLED, "_subclasses.fake_tensor.unset_fake_temporarily", TRACE),
        (Use.READ, "constant", TRACE, "_subclasses.fake_tensor.FakeTensor.__new__"),
        (Use.READ, "fake_device", TRACE, "_subclasses.fake_tensor.FakeTensor.__new__"),
        (Use.CALLED, "utils._python_dispatch.TorchDispatchMode", TRACE),
        (Use.CALLED, "_C._current_autograd_node", TRACE),
        (Use.READ, "UntypedStorage._cdata", TRACE),
        (Use.WRITTEN, "_parameters", TRACE, "nn.Module.__init__"),
        (Use.WRITTEN, "_buffers", TRACE, "nn.Module.__init__"),
        *((Use.READ, f"ops.aten.{name}", TRACE) for name in OPERATORS),
    ),
    *_rows(Road.CALIBRATION, "torch", (Use.CALLED, "_C._cuda_clearCublasWorkspaces", "measuring a GPU's overheads")),
    *_rows(Road.HUB, "huggingface_hub", (Use.READ, "utils.httpx", "telling that the Hub does not answer")),
)
