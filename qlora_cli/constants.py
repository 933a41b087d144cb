"""Numbers and signs by which several rooms mean the same."""

from __future__ import annotations

GIB, MIB, KIB = 2**30, 2**20, 2**10

IGNORE_INDEX = -100
"""Label of a token that is not trained, as in `torch.nn.functional.cross_entropy`."""

INITS_AGAINST_ROUNDING = ("loftq", "calibrated")
"""Values of `lora.init_lora_weights` with which B @ A makes up for the error of a quantized base."""

INTEGERS = "qlora_int"
"""`quant_method` in the config.json of a base in our integers."""

AMPERE = (8, 0)
"""First compute capability that computes in bfloat16 and runs FlashAttention (NVIDIA Ampere)."""

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""

MERGE_RECORD = "qlora_merge.json"
"""Record of the merge in a merged model folder; `deploy/record.py` has its content."""

ADAPTER_RECORD = "qlora_adapter.json"
"""What an adapter was trained on, in its folder; `model/adapter_record.py` has its content."""
