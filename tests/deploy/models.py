"""Tiny real models: two layers, hidden 64, so that NF4's blocks of 64 fit."""

from __future__ import annotations

import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from qlora_cli.compat import keep_four_bit_weights_unpacked
from qlora_cli.model.fingerprint import fingerprint_base
from qlora_cli.model.tiny_tokenizer import train_tokenizer
from qlora_cli.recipe.reader import dump_recipe
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import write_manifest

VOCABULARY = 264  # 256 bytes, 4 special tokens, 4 merges
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 3,
}
"""Of toys: two layers, widths that are multiples of 64, the block of NF4."""

QUANTIZATIONS = {
    "none": None,
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}


def save_llama(folder, *, tie_word_embeddings):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tie_word_embeddings)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder):
    """About one token a byte, ChatML turns."""
    train_tokenizer(["a small corpus"], VOCABULARY, max_length=256).save_pretrained(folder)


def cut_as_gpt2(folder):
    """Give a model folder a tokenizer that cuts as GPT-2's does, which llama.cpp knows; the chat template stays."""
    cutter = Tokenizer(models.BPE())
    cutter.pre_tokenizer, cutter.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=special)
    cutter.train_from_iterator(["the cat and the hat of the cat"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=cutter, bos_token="<s>", eos_token="<|im_end|>")
    tokenizer.chat_template = (folder / "chat_template.jinja").read_text()
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == VOCABULARY
    return folder


def save_run(folder, base_folder, *, quantization="nf4", is_inert=False, **adapter_settings):
    """A finished run directory: recipe, manifest and an adapter whose B is not zero."""
    data = folder / "eval.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps({"instruction": f"Count to {n}.", "output": "1 2 3"}) + "\n" for n in range(4)))
    sections = {
        "name": "tiny",
        "model": {"base_model": str(base_folder)},
        "data": {"train": str(data), "packing": False},
    }
    if quantization != "none":
        sections["quantization"] = {"quant_type": quantization}
    recipe = Recipe.model_validate(sections)
    run = RunDirectory(folder)
    run.recipe_path.write_text(dump_recipe(recipe))
    write_manifest(run, {"base": {"fingerprint": fingerprint_base(recipe.model)}})
    tuned = with_adapter(load_base(base_folder, quantization), **adapter_settings)
    if is_inert:
        tuned.load_state_dict(
            {name: value * 0 for name, value in tuned.state_dict().items() if "lora_B" in name}, strict=False
        )
    tuned.save_pretrained(run.adapter_path)
    return run


def save_gpt2(folder):
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=256, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=3
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder)
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
