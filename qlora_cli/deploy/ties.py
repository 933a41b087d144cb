"""Embedding and output head that are one tensor in the checkpoint, and a training that has drawn them apart."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from qlora_cli.deploy.changes import are_same
from qlora_cli.deploy.checkpoint_map import CheckpointMap
from qlora_cli.deploy.fold_plan import FoldPlan


@dataclass(frozen=True)
class BrokenTie:
    """An output head that needs a tensor of its own from now on."""

    head: str
    """Name of its weight."""

    embedding: str
    """Name of the weight that was both."""

    key: str | None
    """The head's name in the checkpoint, where it needs a new tensor; None where the checkpoint has one."""


def broken_tie(plain: PreTrainedModel, plan: FoldPlan, origins: CheckpointMap) -> BrokenTie | None:
    """The tie that a merge must give up: loaded as tied, one of two different tensors would be lost.

    That happens where only one of the two was trained, in `modules_to_save` or by an adapter, or each in its own way.
    Where both were trained to the same values, and the checkpoint has no head, the head is taken out of the plan.

    Args:
        plain: the model on the meta device.
        plan: what becomes of the parameters.
        origins: which parameters the checkpoint has.
    """
    names = {id(module): f"{name}.weight" for name, module in plain.named_modules()}
    head_module = plain.get_output_embeddings()
    if head_module is None:
        return None
    embedding, head = names[id(plain.get_input_embeddings())], names[id(head_module)]
    if head_module.weight is not plain.get_input_embeddings().weight or not {head, embedding} & set(plan.names):
        return None
    if are_same(plan.changes.get(head), plan.changes.get(embedding)):
        if head not in origins.origins:
            del plan.changes[head]
        return None
    return BrokenTie(head, embedding, None if head in origins.origins else origins.key_of(head))
