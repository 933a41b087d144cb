"""Toy checkpoints in the layout of released ones: several shards, per-expert tensors where those have them, a vision
tower where the base has one, and for Qwen3.5 a layer for the prediction of several tokens, which no class loads.

Two text layers of random weights in bfloat16; widths are multiples of 64, the block of NF4. The tests of training,
planning and merging stand on the same folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import save_file

from tests.tiny_models import byte_tokenizer

VOCABULARY = 272
"""The byte tokenizer's 256 and its special tokens, those of images, and some that are never met."""

IMAGE_TOKEN, IMAGE_START, IMAGE_END, VIDEO_TOKEN, AUDIO_TOKEN = 265, 266, 267, 268, 269
SHARD_SIZE = "150KB"
EXTRA_SHARD = "model-mtp.safetensors"

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 259,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
HEAD: dict[str, Any] = {"head_dim": 16}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 64,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": IMAGE_START,
    "vision_end_token_id": IMAGE_END,
}
QWEN_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LINEAR_ATTENTION: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def _qwen3_5_vl() -> hf.PreTrainedModel:
    config = hf.Qwen3_5Config(text_config=TEXT | HEAD | LINEAR_ATTENTION, vision_config=QWEN_VISION, **QWEN_TOKENS)
    return hf.Qwen3_5ForConditionalGeneration(config)


def _qwen3_5_moe_vl() -> hf.PreTrainedModel:
    text = TEXT | HEAD | LINEAR_ATTENTION | QWEN_MOE | {"shared_expert_intermediate_size": 64}
    config = hf.Qwen3_5MoeConfig(text_config=text, vision_config=QWEN_VISION, **QWEN_TOKENS)
    return hf.Qwen3_5MoeForConditionalGeneration(config)


def _qwen2_5_vl() -> hf.PreTrainedModel:
    vision = QWEN_VISION | {"fullatt_block_indexes": [0], "patch_size": 14, "window_size": 28}
    config = hf.Qwen2_5_VLConfig(text_config=TEXT | {"rope_parameters": MROPE}, vision_config=vision, **QWEN_TOKENS)
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _gemma3() -> hf.PreTrainedModel:
    text = TEXT | HEAD | {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    tokens = {"image_token_index": IMAGE_TOKEN, "boi_token_index": IMAGE_START, "eoi_token_index": IMAGE_END}
    config = hf.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=1, **tokens)
    return hf.Gemma3ForConditionalGeneration(config)


def _mistral3() -> hf.PreTrainedModel:
    text = TEXT | HEAD | {"model_type": "mistral", "tie_word_embeddings": False}
    vision = VISION | HEAD | {"model_type": "pixtral", "head_dim": 32}
    config = hf.Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN, tie_word_embeddings=False
    )
    return hf.Mistral3ForConditionalGeneration(config)


def _llama4() -> hf.PreTrainedModel:
    text = TEXT | HEAD | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 64}
    vision = VISION | {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64}
    vision |= {"intermediate_size": 256, "pixel_shuffle_ratio": 0.5}
    tokens = {"image_token_index": IMAGE_TOKEN, "boi_token_index": IMAGE_START, "eoi_token_index": IMAGE_END}
    return hf.Llama4ForConditionalGeneration(hf.Llama4Config(text_config=text, vision_config=vision, **tokens))


def _gemma4(**text_settings: Any) -> hf.PreTrainedModel:
    text = TEXT | HEAD | {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    text |= {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCABULARY} | text_settings
    vision = VISION | {"num_key_value_heads": 2, "head_dim": 32, "position_embedding_size": 16}
    tokens = {"image_token_id": IMAGE_TOKEN, "boi_token_id": IMAGE_START, "eoi_token_id": IMAGE_END}
    tokens |= {"video_token_id": VIDEO_TOKEN, "audio_token_id": AUDIO_TOKEN}
    return hf.Gemma4ForConditionalGeneration(hf.Gemma4Config(text_config=text, vision_config=vision, **tokens))


def _gemma4_moe() -> hf.PreTrainedModel:
    experts = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}
    return _gemma4(enable_moe_block=True, **experts)


def _qwen3_moe() -> hf.PreTrainedModel:
    return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**TEXT | HEAD | QWEN_MOE))


def _mixtral() -> hf.PreTrainedModel:
    return hf.MixtralForCausalLM(hf.MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2))


def _gpt_oss() -> hf.PreTrainedModel:
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
    return hf.GptOssForCausalLM(hf.GptOssConfig(**TEXT | HEAD | layers, num_local_experts=4, num_experts_per_tok=2))


def _glm4_moe() -> hf.PreTrainedModel:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1}
    config = hf.Glm4MoeConfig(**TEXT | HEAD, **experts, first_k_dense_replace=1, num_mtp_layers=0)
    return hf.Glm4MoeForCausalLM(config)


def _deepseek_v3() -> hf.PreTrainedModel:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1}
    ranks = {"q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
    return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**TEXT | experts | ranks | groups))


MULTIMODAL: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "qwen3_5_vl": _qwen3_5_vl,
    "qwen3_5_moe_vl": _qwen3_5_moe_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "gemma3": _gemma3,
    "mistral3": _mistral3,
    "llama4": _llama4,
    "gemma4": _gemma4,
    "gemma4_moe": _gemma4_moe,
}
"""Bases with a vision tower, by the class that their config.json names."""

TEXT_ONLY: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
    "glm4_moe": _glm4_moe,
    "deepseek_v3": _deepseek_v3,
}
"""Mixtures of experts without a tower."""

WITH_MTP = {"qwen3_5_vl", "qwen3_5_moe_vl"}
"""Bases whose files hold `mtp.*` tensors."""


def save_toy(name: str, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A multi-shard checkpoint of that shape in `folder`, with tokenizer, generation settings and processor file."""
    torch.manual_seed(0)
    model = (MULTIMODAL | TEXT_ONLY)[name]()
    for parameter in model.parameters():  # random weights of the usual size give answers that are all alike
        parameter.data = (parameter.data * (5 if parameter.dim() > 1 else 1)).to(dtype)
    tokenizer = byte_tokenizer()
    model.generation_config = hf.GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, eos_token_id=[258, 257], pad_token_id=259, bos_token_id=257
    )
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)
    if name in MULTIMODAL:
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_size": 28, "patch_size": 14}))
    if name in WITH_MTP:
        _add_mtp(folder, dtype)
    return folder


def _add_mtp(folder: Path, dtype: torch.dtype) -> None:
    """A shard of its own with tensors that the base's class never loads, entered in the index."""
    tensors = {
        "mtp.fc.weight": torch.randn(64, 128).to(dtype),
        "mtp.layers.0.mlp.up_proj.weight": torch.randn(128, 64).to(dtype),
        "mtp.norm.weight": torch.zeros(64, dtype=dtype),
    }
    save_file(tensors, folder / EXTRA_SHARD, metadata={"format": "pt"})
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= dict.fromkeys(tensors, EXTRA_SHARD)
    index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in tensors.values())
    path.write_text(json.dumps(index, indent=2, sort_keys=True))
