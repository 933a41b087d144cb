"""A folder with everything that the values of recipe keys can name: bases, a Hub cache, data, parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM

from tests.model.packed_bases import packed_base
from tests.plan.bases import config_of
from tests.tiny_models import byte_tokenizer, tiny_llama


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


REMOTE_CODE = """from transformers import LlamaConfig, LlamaForCausalLM
class MyConfig(LlamaConfig):
    model_type = "mine"
class MyModel(LlamaForCausalLM):
    config_class = MyConfig
"""


def set_scene(folder: Path) -> None:
    """Fill `folder` with bases, data and parts of recipes."""
    snapshots = {f"hub/models--org--name/snapshots/{digit * 40}": seed for digit, seed in (("1", 1), ("2", 2))}
    for name, seed in {"base": 0, "other-base": 3, "remote-base": 4, **snapshots}.items():
        tokenizer = byte_tokenizer(f"<|tool-{seed}|>")
        tiny_llama(len(tokenizer), seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    torch.manual_seed(6)
    AutoModelForCausalLM.from_config(config_of("mixtral")).save_pretrained(folder / "mixture")
    byte_tokenizer().save_pretrained(folder / "mixture")
    refs = folder / "hub/models--org--name/refs"
    refs.mkdir()
    for name, digit in (("main", "1"), ("one", "1"), ("two", "2")):
        (refs / name).write_text(digit * 40)
    config = json.loads((folder / "remote-base/config.json").read_text())
    code = {"AutoConfig": "modeling_mine.MyConfig", "AutoModelForCausalLM": "modeling_mine.MyModel"}
    config |= {"model_type": "mine", "auto_map": code, "architectures": ["MyModel"]}
    (folder / "remote-base/config.json").write_text(json.dumps(config))
    (folder / "remote-base/modeling_mine.py").write_text(REMOTE_CODE)
    packed_base("fp8", folder / "fp8", vocab_size=len(byte_tokenizer()))[0].rename(folder / "packed-base")
    byte_tokenizer().save_pretrained(folder / "packed-base")
    byte_tokenizer().save_pretrained(folder / "pickled-base")
    pickled = tiny_llama(len(byte_tokenizer()), seed=5)
    pickled.config.save_pretrained(folder / "pickled-base")
    torch.save(pickled.state_dict(), folder / "pickled-base/pytorch_model.bin")
    (folder / "dated.jinja").write_text(
        "{% for m in messages %}{{ strftime_now('%d %b %Y') }} <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "utf-8",
    )
    (folder / "shout.jinja").write_text(
        "{% for message in messages %}{{ message['role'] | upper + message['content'] + eos_token }}{% endfor %}"
    )
    for name, r in (("small.yaml", 4), ("large.yaml", 8)):
        (folder / name).write_text(f"lora: {{r: {r}}}\n")
    sums = [{"instruction": f"{n}+1?", "output": str(n + 1)} for n in range(10, 22)]
    write_jsonl(folder / "sums.jsonl", sums)
    write_jsonl(folder / "others.jsonl", sums[:6])
    asked = {"instruction": "add 1 and 1", "output": "2", "question": "add 1 and 1", "choices": ["2", "3"], "answer": 0}
    write_jsonl(folder / "choices.jsonl", [asked])
    (folder / "schema.json").write_text('{"type": "integer"}')
    ends = [
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    short, long = ([{"role": "user", "content": question}, *ends] for question in ("a", "?" * 300))
    write_jsonl(folder / "long.jsonl", [{"messages": short}, {"messages": long}])
    story = "the quick brown fox jumps over the lazy dog and runs through the field until the sun goes down at last"
    uneven = [("ask", "yes"), ("ask", "yes"), ("tell", f"{story} today"), ("tell", f"{story} again"), ("say", " no ")]
    rows = [{"instruction": question, "output": answer} for question, answer in uneven]
    write_jsonl(folder / "uneven.jsonl", [*rows[:3], *({**row, "note": "kept"} for row in rows[3:])])
    talk = [{"role": role, "content": text} for text in "ab" for role in ("user", "assistant")]
    write_jsonl(folder / "talk.jsonl", [{"messages": talk}])
    write_jsonl(folder / "pairs.jsonl", [{"ask": f"{n}?", "say": f"<{n}>"} for n in range(6)])
    # A list of chat turns under the names of two formats, so that only `format` can distinguish them.
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    said = [{"from": "human", "value": "who"}, {"from": "gpt", "value": "me"}]
    write_jsonl(folder / "both.jsonl", [{"messages": turns, "conversations": said}])
    flagged = [{"instruction": f"say {n}", "input": "aloud", "output": str(n), "flag": n % 2 == 0} for n in range(6)]
    write_jsonl(folder / "flagged.jsonl", flagged)
    splits = {"train": datasets.Dataset.from_list(sums[:8]), "test": datasets.Dataset.from_list(sums[8:])}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
