"""Tiny real models: two layers, hidden 64, so that NF4's blocks of 64 fit."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from qlora_cli.compat import keep_four_bit_weights_unpacked

VOCABULARY = 128
QUANTIZATIONS = {
    "none": None,
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}


def save_llama(folder, *, tie_word_embeddings):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=tie_word_embeddings,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_gpt2(folder):
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def load_base(folder, quantization="none", dtype=torch.float32) -> PreTrainedModel:
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=QUANTIZATIONS[quantization], dtype=dtype, device_map={"": "cpu"}
    )
    keep_four_bit_weights_unpacked(base)
    return base.eval()


def with_adapter(base: PreTrainedModel, **settings) -> PeftModel:
    """An adapter whose B is not zero, as after training."""
    torch.manual_seed(2)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    )
    tuned = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.normal_(std=0.05)
            elif "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            elif "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return tuned.eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.arange(1, 33).view(2, 16)
    return model.eval()(input_ids=ids).logits.float()
