"""Run by the interpreter of another environment: opens a model folder with its transformers and says what it computes.

`python open_with_transformers.py FOLDER OUT` writes the logits of a fixed row to OUT and prints one line of JSON.
"""

import json
import sys

import torch
import transformers

QUESTION = [{"role": "user", "content": "Name three colours."}]


def main(folder: str, out: str) -> None:
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        kind = getattr(transformers, json.load(file)["architectures"][0])
    model = kind.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    with torch.no_grad():
        torch.save(model(input_ids=torch.tensor([list(range(1, 200))])).logits, out)
    facts = {"version": transformers.__version__, "ids": ids, "stops_at": model.generation_config.eos_token_id}
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
