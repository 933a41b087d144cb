"""What ends an answer in llama.cpp, read from the file that it gets: `make test-engines`."""

import os
import subprocess

import pytest
from transformers import AutoTokenizer

from qlora_cli.deploy.formats.gguf import GGUF_FILE
from tests.deploy.formats.jobs import written
from tests.deploy.models import cut_as_gpt2, save_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("QLORA_GGUF_PYTHON" not in os.environ, reason="needs QLORA_GGUF_PYTHON"),
]

ENDS = """
import sys
import llama_cpp
parameters = llama_cpp.llama_model_default_params()
parameters.vocab_only = True
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), parameters)
vocabulary = llama_cpp.llama_model_get_vocab(model)
tokens = range(llama_cpp.llama_vocab_n_tokens(vocabulary))
print(*(token for token in tokens if llama_cpp.llama_vocab_is_eog(vocabulary, token)))
"""


def test_llama_cpp_stops_where_the_chat_template_ends_an_answer(tmp_path):
    base = cut_as_gpt2(save_llama(tmp_path / "base", tie_word_embeddings=True))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = "<pad>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (base / name).read_text()
        (base / name).write_text(text.replace("<|im_end|>", "<|fin|>"))  # no name that llama.cpp knows by itself
    tokenizer = AutoTokenizer.from_pretrained(base)
    out = written(GGUF_FILE, base, tmp_path / "out", quant="f32")
    command = [os.environ["QLORA_GGUF_PYTHON"], "-c", ENDS, str(out / "model-f32.gguf")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {int(token) for token in found} >= set(tokenizer.convert_tokens_to_ids(["<pad>", "<|fin|>"]))
