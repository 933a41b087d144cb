"""What a library raises while it reads a base, as one line with what to do."""

from __future__ import annotations

import pickle

from safetensors import SafetensorError

from qlora_cli.errors import RecipeError


def source_error(name: str, fault: BaseException) -> RecipeError:
    """The library's reason why `name` cannot be loaded, in one line, with what to do."""
    reason = " ".join(str(fault).split())
    if not isinstance(fault, OSError | ValueError | ImportError):  # a text such as "'added_tokens'" says little
        reason = f"{type(fault).__name__}: {reason}"
    lowered = reason.lower()
    if "cuda" in lowered:
        hint = "look at the GPU with `qlora doctor`"
    elif isinstance(fault, SafetensorError | RecursionError | LookupError | pickle.UnpicklingError) or type(fault) in (
        Exception,
        RuntimeError,
    ):
        hint = "a file of it is damaged, or belongs to another model: download it again"
    elif "gated" in lowered or "401" in lowered or "403" in lowered:
        hint = "accept its licence on the Hub, then `hf auth login`, or set HF_TOKEN"
    elif "custom code" in lowered:
        hint = "read that code; if you trust it, --set model.trust_remote_code=true with a model.revision"
    elif "offline" in lowered or "couldn't connect" in lowered or "can't load" in lowered or "cannot find" in lowered:
        hint = "check the name for typing errors; offline, it must be a local folder or already in the Hub cache"
    elif "attention implementation" in lowered or "flash" in lowered:
        reason = reason.partition(". ")[0]  # the rest asks to open an issue with transformers
        hint = "--set model.attn_implementation=eager, or install the kernel that it names"
    elif "safetensors" in lowered:
        hint = (
            "convert the model to safetensors, or choose a revision that has them; "
            "if you trust its .bin files, --set model.allow_pickle=true"
        )
    else:
        hint = "give a Hub id such as Qwen/Qwen3-8B, or a folder with config.json and safetensors weights"
    return RecipeError(f"model.base_model '{name}' cannot be loaded: {reason[:300]}", hint=hint)
