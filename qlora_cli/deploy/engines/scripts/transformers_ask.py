"""Run by a Python that has transformers: opens a model folder and answers. `python transformers_ask.py REQUEST.json`.

Nothing of this project is imported. An adapter folder is put on its base by PEFT.
"""

import json
import sys
import time
from typing import Any

import torch
import transformers
from safetensors.torch import save_file


def load_model(request: dict[str, Any]) -> Any:
    """The model as its own class, in the type that it is stored in; an adapter on the base that the request names."""
    folder = request.get("base") or request["model"]
    trusted = {"trust_remote_code": request.get("trust_remote_code", False)}
    config = transformers.AutoConfig.from_pretrained(folder, **trusted)
    kinds = [getattr(transformers, name, None) for name in config.architectures or []]
    kind = next((kind for kind in kinds if kind is not None), transformers.AutoModelForCausalLM)
    options = dict(request.get("loading", {}))
    if "quantization" in options:
        options["quantization_config"] = transformers.BitsAndBytesConfig(**options.pop("quantization"))
    if torch.cuda.is_available():
        options["device_map"] = {"": 0}
    model = kind.from_pretrained(folder, **trusted, **options)
    if request.get("base"):
        from peft import PeftModel

        if (getattr(config, "quantization_config", None) or {}).get("quant_method") == "compressed-tensors":
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device))  # unpacks the weights
        for (
            module
        ) in model.modules():  # bitsandbytes packs 4-bit weights anew on some CPUs, and PEFT reads them as plain
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        model = PeftModel.from_pretrained(model, request["model"])
    return model.eval()


@torch.no_grad()
def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    model = load_model(request)
    logits = {}
    for number, row in enumerate(request["rows"]):
        ids = torch.tensor([row], device=model.device)
        last = model(input_ids=ids, use_cache=False).logits[0, -request["num_last"] :]
        logits[str(number)] = last.float().cpu().contiguous()
    if logits:
        save_file(logits, f"{request['answers']}/logits.safetensors")
    settings = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=request["max_new_tokens"],
        eos_token_id=request["end_ids"] or None,
        pad_token_id=(request["end_ids"] or [0])[0],
    )
    model.generation_config = settings
    texts, start = [], time.perf_counter()
    for prompt in request["prompts"]:
        ids = torch.tensor([prompt], device=model.device)
        answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        texts.append(answer[0, len(prompt) :].tolist())
    seconds = time.perf_counter() - start
    rate = sum(map(len, texts)) / seconds if texts else 0.0
    with open(f"{request['answers']}/answers.json", "w", encoding="utf-8") as file:
        json.dump({"texts": texts, "tokens_per_second": rate}, file)


if __name__ == "__main__":
    main(sys.argv[1])
