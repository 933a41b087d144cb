"""Numbers and signs by which several rooms mean the same."""

from __future__ import annotations

GIB, MIB, KIB = 2**30, 2**20, 2**10

IGNORE_INDEX = -100
"""Label of a token that is not trained, as in `torch.nn.functional.cross_entropy`."""

AMPERE = (8, 0)
"""First compute capability that computes in bfloat16 and runs FlashAttention (NVIDIA Ampere)."""

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""

MERGE_RECORD = "qlora_merge.json"
"""Record of the merge in a merged model folder."""
