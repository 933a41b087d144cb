"""In llama.cpp's environment: `python gguf_ask.py REQUEST.json` opens a GGUF file and answers.

With "texts" in the request it only cuts them into tokens, as chat programs do.
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from safetensors.numpy import save_file


def load(path: str, vocab_only: bool) -> Any:
    """A model; without the extra buffers, whose AMX kernels crash (ggml-org/llama.cpp#20824)."""
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False
    parameters.vocab_only = vocab_only
    model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        sys.exit(f"error: llama.cpp cannot open {path}")
    return model


def cut(vocabulary: Any, text: str) -> list[int]:
    """Token ids of a text, special tokens that it spells included, none added."""
    data = text.encode()
    room = len(data) + 8
    ids = (llama_cpp.llama_token * room)()
    number = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, room, False, True)
    return list(ids[:number]) if number >= 0 else []


def add_adapter(context: Any, model: Any, path: str) -> None:
    """Have a context add a LoRA adapter to its model, at the strength of training."""
    adapter = llama_cpp.llama_adapter_lora_init(model, path.encode())
    if not adapter:
        sys.exit(f"error: llama.cpp cannot put {path} on its base")
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
    if llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)) != 0:
        sys.exit(f"error: llama.cpp refuses {path}")


class Reader:
    """A context that rows are read in, one after the other."""

    def __init__(self, model: Any, longest: int) -> None:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = longest
        parameters.n_threads = parameters.n_threads_batch = os.cpu_count() or 1
        self.context = llama_cpp.llama_init_from_model(model, parameters)
        if not self.context:
            sys.exit("error: llama.cpp has no room for a context")
        self.width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def read(self, ids: list[int], start: int, num_last: int) -> np.ndarray:
        """Logits at the last positions: float32 [L, V]."""
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        first = max(0, len(ids) - num_last)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, start + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index >= first
        code = llama_cpp.llama_decode(self.context, batch)
        if code != 0:
            sys.exit(f"error: llama_decode ended with {code}")
        rows = []
        for index in range(first, len(ids)):
            logits = llama_cpp.llama_get_logits_ith(self.context, index)
            rows.append(
                np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.width,)).copy()
            )
        llama_cpp.llama_batch_free(batch)
        return np.stack(rows)


def answer(reader: Reader, prompt: list[int], end_ids: set[int], max_new_tokens: int) -> list[int]:
    reader.forget()
    new = [int(reader.read(prompt, 0, 1)[0].argmax())]
    while new[-1] not in end_ids and len(new) < max_new_tokens:
        new.append(int(reader.read(new[-1:], len(prompt) + len(new) - 1, 1)[0].argmax()))
    return new


def file_of(path: str) -> str:
    """The GGUF file at a path, which may be the folder it lies in."""
    return str(next(Path(path).glob("*.gguf"))) if Path(path).is_dir() else path


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = Path(request["answers"])
    path = file_of(request["model"])
    llama_cpp.llama_backend_init()
    model = load(path, "texts" in request)
    if "texts" in request:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        (answers / "tokens.json").write_text(json.dumps([cut(vocabulary, text) for text in request["texts"]]))
        return
    new = request["max_new_tokens"]
    rows, prompts = request["rows"], request["prompts"]
    reader = Reader(model, max(*map(len, rows), *(len(prompt) + new for prompt in prompts), 64, 64))
    if "adapter" in request:
        add_adapter(reader.context, model, file_of(request["adapter"]))
    logits = {}
    for number, row in enumerate(rows):
        reader.forget()
        logits[str(number)] = reader.read(row, 0, request["num_last"])
    if logits:
        save_file(logits, answers / "logits.safetensors")
    started = time.perf_counter()
    texts = [answer(reader, prompt, set(request["end_ids"]), new) for prompt in prompts]
    seconds = time.perf_counter() - started
    speed = sum(map(len, texts)) / seconds if texts else 0.0
    (answers / "answers.json").write_text(json.dumps({"texts": texts, "tokens_per_second": speed}))


if __name__ == "__main__":
    main()
