"""Run by a Python that has mlx-lm: opens a model folder and answers. `python mlx_ask.py REQUEST.json`.

Nothing of this project is imported.
"""

import json
import sys
import time
from typing import Any

import mlx.core as mx
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache


def answer(model: Any, prompt: list[int], end_ids: set[int], max_new_tokens: int) -> list[int]:
    """The most likely tokens after a prompt, the one that ends the answer included."""
    cache, given = make_prompt_cache(model), prompt
    tokens: list[int] = []
    while len(tokens) < max_new_tokens:
        logits = model(mx.array([given]), cache=cache)
        tokens.append(int(mx.argmax(logits[0, -1])))
        if tokens[-1] in end_ids:
            break
        given = tokens[-1:]
    return tokens


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    model, _ = load(request["model"])
    logits = {}
    for number, row in enumerate(request["rows"]):
        logits[str(number)] = model(mx.array([row]))[0, -request["num_last"] :].astype(mx.float32)
    if logits:
        mx.save_safetensors(f"{request['answers']}/logits.safetensors", logits)
    end_ids, start = set(request["end_ids"]), time.perf_counter()
    texts = [answer(model, prompt, end_ids, request["max_new_tokens"]) for prompt in request["prompts"]]
    seconds = time.perf_counter() - start
    rate = sum(map(len, texts)) / seconds if texts else 0.0
    with open(f"{request['answers']}/answers.json", "w", encoding="utf-8") as file:
        json.dump({"texts": texts, "tokens_per_second": rate}, file)


if __name__ == "__main__":
    main(sys.argv[1])
