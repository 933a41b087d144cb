"""A merged model folder: the base's own checkpoint and files, with the changed tensors in it and nothing else."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import PreTrainedModel

from qlora_cli.deploy.checkpoint import open_checkpoint
from qlora_cli.deploy.checkpoint_map import CheckpointMap
from qlora_cli.deploy.fold_plan import FoldPlan
from qlora_cli.deploy.integers import dtypes_of_offsets, integer_settings, map_of_codes, num_weights
from qlora_cli.deploy.merge_stream import MergeSources, write_merged_weights
from qlora_cli.deploy.model_folder import vocabulary_of, write_config
from qlora_cli.deploy.new_biases import with_new_biases
from qlora_cli.deploy.ties import broken_tie
from qlora_cli.deploy.written_weights import WrittenWeights
from qlora_cli.model.device import dtype_name
from qlora_cli.model.fingerprint import base_folder
from qlora_cli.model.other_files import copy_other_files
from qlora_cli.model.tuned import TunedSource
from qlora_cli.run.disk_errors import naming


def write_model(
    folder: Path, source: TunedSource, skeleton: PreTrainedModel, plan: FoldPlan, *, dtype: torch.dtype | None
) -> WrittenWeights:
    """Write weights, config and the base's other files into an empty folder.

    Args:
        folder: where to.
        source: its base.
        skeleton: the base's model on the meta device.
        plan: what becomes of its parameters.
        dtype: of all floating tensors; None keeps that of each.

    Raises:
        ArgumentError: if the base's configuration has no place for a bias that the adapter brings.
        IdentityError: if a parameter to be changed is not in the base's checkpoint.
        ResourceError: if the disk has no room for the weights.
    """
    base = base_folder(source.model, whole=True)
    skeleton, bias_settings = with_new_biases(skeleton, plan)
    with ExitStack() as stack:
        checkpoint = plain = stack.enter_context(open_checkpoint(base, allow_pickle=source.model.allow_pickle))
        base_map = CheckpointMap(skeleton, checkpoint)
        if plan.keeps_codes:
            checkpoint = stack.enter_context(open_checkpoint(base, as_stored=True))
            base_map = map_of_codes(skeleton, plain, checkpoint)
            plan.dtypes = dtypes_of_offsets(plain)
        sources = MergeSources(checkpoint, base_map, checkpoint, base_map)
        if source.base_source is not None:
            values = stack.enter_context(open_checkpoint(Path(source.base_source)))
            sources = MergeSources(checkpoint, base_map, values, CheckpointMap(skeleton, values))
        for name, origin in sources.values_map.origins.items():
            if any(sources.values.is_as_trained(key) for key in origin.keys):
                plan.precisions.pop(name, None)
        tie = broken_tie(skeleton, plan, base_map)
        with naming(folder):
            weights = write_merged_weights(sources, plan, tie, folder, dtype)
            weights.left_out = copy_other_files(base, folder)
        if plan.keeps_codes:
            weights.num_parameters, weights.dtype = num_weights(plain), f"int{integer_settings(base).bits}"
    changes: dict[str, object] = {} if plan.keeps_codes else {"quantization_config": None}
    if skeleton.config.get_text_config().vocab_size != vocabulary_of(base):
        changes["vocab_size"] = skeleton.config.get_text_config().vocab_size
    if tie is not None:
        changes["tie_word_embeddings"] = False
    if dtype is not None:
        changes |= {"dtype": dtype_name(dtype), "torch_dtype": dtype_name(dtype)}
    write_config(folder, changes, bias_settings)
    return weights
