"""SentencePiece tokenizers in GGUF files: llama.cpp cuts chats into the tokens of training. `make test-engines`.

transformers 5 saves them as tokenizer.json alone, with neither tokenizer.model nor a list of added tokens that
llama.cpp's converter reads (llama.cpp#19152), and llama.cpp puts a space after special tokens where a tokenizer that is
not `legacy` has none (llama.cpp#7629, #23840).
"""

import json
import os

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)

from qlora_cli.deploy.engines.llama_cpp import cut_with_llama_cpp
from qlora_cli.deploy.formats.gguf import GGUF_FILE, adds_no_space
from tests.deploy.formats.jobs import written
from tests.tiny_models import CHATML

pytestmark = pytest.mark.slow
WITH_LLAMA_CPP = pytest.mark.skipif("QLORA_GGUF_PYTHON" not in os.environ, reason="needs QLORA_GGUF_PYTHON")

TEXTS = (
    "Hi, me again.\nI have a spare one until Friday: 123.45 é 👩‍🚀",
    "  two  spaces, and a tab\t; naïve",
    "<|im_start|>user\nHi again<|im_end|>\n<|im_start|>assistant\n ok<|im_end|>\n",
)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "max_position_embeddings": 128}

SPACED = {
    "llama, legacy": [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")],
    "llama": [],
    "gemma": [normalizers.Replace(" ", "▁")],
}
"""What three families do to a text before it is cut; the second has a pre-tokenizer for it."""


def tokenizer_of(family):
    """Merges as transformers makes them of a SentencePiece model: all pairs that make a piece, in the pieces' order."""
    bytes_256 = [f"<0x{number:02X}>" for number in range(256)]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *bytes_256])
    backend.train_from_iterator([f"▁{text}" for text in TEXTS[:2]] * 3, trainer)
    content = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    pieces = [left + right for left, right in content["model"]["merges"]]
    content["model"]["merges"] = [
        [piece[:at], piece[at:]]
        for piece in dict.fromkeys(pieces)
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    content["added_tokens"] = content["added_tokens"][:3]
    content["normalizer"] = None
    if family == "llama":
        content["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        }
    backend = Tokenizer.from_str(json.dumps(content))
    if SPACED[family]:
        backend.normalizer = normalizers.Sequence(SPACED[family])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    marks = [AddedToken(mark, normalized=False, special=True) for mark in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = CHATML
    return tokenizer


def save_base(family, folder):
    """A model whose vocabulary has room beyond the tokenizer's, as most have."""
    tokenizer = tokenizer_of(family)
    sizes = SIZES | {"vocab_size": len(tokenizer) + 10, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    if family == "gemma":
        model = Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=32, query_pre_attn_scalar=32, pad_token_id=0))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


@WITH_LLAMA_CPP
@pytest.mark.parametrize("family", SPACED)
def test_llama_cpp_cuts_as_a_tokenizer_json_says(family, tmp_path):
    tokenizer = save_base(family, tmp_path / "base")
    before = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    out = written(GGUF_FILE, tmp_path / "base", tmp_path / "out", quant="f32")
    texts = [mark + text for text in TEXTS for mark in ("<s>", "<|im_start|>")]
    expected = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert cut_with_llama_cpp(out / "model-f32.gguf", texts) == expected
    assert {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()} == before


@WITH_LLAMA_CPP
def test_marks_of_phi_3_take_the_line_break_after_them_along(tmp_path):
    """llama.cpp does so for models of that name alone, so the file has the name of the base."""
    tokenizer, base = tokenizer_of("llama, legacy"), tmp_path / "Phi-3-tiny"
    marks = ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]
    tokens = [AddedToken(mark, normalized=False, special=True, rstrip=True) for mark in marks]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    sizes = SIZES | {"vocab_size": len(tokenizer) + 10, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    Phi3ForCausalLM(Phi3Config(**sizes)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    out = written(GGUF_FILE, base, tmp_path / "out", quant="f32")
    text = "<|user|>\nHi again<|end|>\n<|assistant|>\n ok<|end|>\n"
    expected = tokenizer(text, add_special_tokens=False).input_ids
    assert len(expected) < len(tokenizer(text.replace("\n", "x"), add_special_tokens=False).input_ids)
    assert cut_with_llama_cpp(out / "model-f32.gguf", [text]) == [expected]


@pytest.mark.parametrize(("family", "expected"), [("llama, legacy", False), ("llama", True), ("gemma", False)])
def test_a_space_that_only_the_start_of_a_text_gets_is_known(family, expected):
    assert adds_no_space(tokenizer_of(family)) is expected
