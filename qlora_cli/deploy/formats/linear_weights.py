"""Which weights of a model folder are those of linear layers that a format may store in fewer bits.

Output head, embeddings, routers, experts, and all that text does not go through keep their numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from qlora_cli.deploy.checkpoint import FLOATS, Checkpoint
from qlora_cli.deploy.checkpoint_map import CheckpointMap, Origin
from qlora_cli.errors import ArgumentError
from qlora_cli.model.linear_layers import is_linear
from qlora_cli.model.towers.auto_class import own_auto_class
from qlora_cli.model.towers.skeleton import bare_skeleton, kept_modules
from qlora_cli.model.towers.text_reach import text_reach

EXPERT = re.compile(r"(?P<experts>.*\.experts)\.\d+\..*")
WEIGHT = ".weight"


@dataclass(frozen=True)
class LinearWeights:
    """Keys of a checkpoint, by what becomes of them."""

    chosen: tuple[str, ...]
    """Weights to store in fewer bits, [out, in]; each is one `nn.Linear` of the model."""

    left: tuple[str, ...]
    """Names, and patterns after `re:`, of every linear layer that keeps its numbers: as the model calls it, and as its
    files do where that is another name."""

    not_divisible: tuple[str, ...]
    """Those of `left` whose columns are no multiple of the group."""


def linear_weights(checkpoint: Checkpoint, folder: Path, *, multiple: int, trust_code: bool) -> LinearWeights:
    """The linear layers of a model folder.

    Args:
        checkpoint: of the folder.
        folder: with the config.
        multiple: number that the columns must be a multiple of.
        trust_code: the folder's code may be run.

    Raises:
        ArgumentError: if there is none to be stored in fewer bits.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_code)
    auto = own_auto_class(config)
    skeleton = bare_skeleton(auto, config)
    origins = CheckpointMap(skeleton, checkpoint).origins
    reach, kept = text_reach(auto, config), kept_modules(skeleton)
    modules = dict(skeleton.named_modules())
    head = skeleton.get_output_embeddings()
    chosen: dict[str, str] = {}
    not_divisible = []
    for name, module in modules.items():
        origin = origins.get(f"{name}{WEIGHT}")
        is_reached = reach is None or name in reach.reached
        if type(module) is not torch.nn.Linear or not is_linear(module) or origin is None or not is_reached:
            continue
        if module is head or name in kept or origin.converter is not None or _chooses_experts(name, modules):
            continue
        [key] = origin.keys
        if checkpoint.tensors[key].shape[-1] % multiple:
            not_divisible.append(name)
        elif key.endswith(WEIGHT) and checkpoint.tensors[key].dtype in FLOATS:
            chosen[key] = name
    if not chosen:
        kinds = sorted({type(module).__name__ for module in modules.values() if is_linear(module)} - {"Linear"})
        raise ArgumentError(
            f"has no linear layer that can be stored in fewer bits: {_reason(kinds, not_divisible, multiple)}",
            place=str(folder),
            hint="use --format hf" if kinds or not not_divisible else "choose a smaller --group-size",
        )
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    left = {*(linear - set(chosen.values())), *_names_in_files(checkpoint, set(chosen), modules, _parameters(origins))}
    return LinearWeights(tuple(chosen), tuple(sorted(left)), tuple(sorted(not_divisible)))


def _chooses_experts(name: str, modules: dict[str, torch.nn.Module]) -> bool:
    """Whether a layer is a router, a part of one, or the gate of a shared expert: engines keep those in 16 bit."""
    parent = modules[name.rpartition(".")[0]]
    return type(parent).__name__.endswith("Router") or name.endswith("gate")


def _reason(kinds: list[str], not_divisible: list[str], multiple: int) -> str:
    if kinds:
        return f"its layers are of the class {', '.join(kinds)}"
    return f"the columns of {not_divisible[0]} are no multiple of {multiple}" if not_divisible else "it has none"


def _parameters(origins: dict[str, Origin]) -> dict[str, str]:
    """Key of the checkpoint -> the parameter that is made of it."""
    return {key: name for name, origin in origins.items() for key in origin.keys}


def _names_in_files(
    checkpoint: Checkpoint, chosen: set[str], modules: dict[str, torch.nn.Module], parameters: dict[str, str]
) -> set[str]:
    """Names after the files of weight matrices that are left: of layers that have another name there, or none here.

    Engines go by the names of the files. Experts are named by a pattern for all of a layer.
    """
    names = set()
    for key, tensor in checkpoint.tensors.items():
        if key in chosen or len(tensor.shape) != 2 or not key.endswith(WEIGHT):
            continue
        module = modules.get(parameters.get(key, "").removesuffix(WEIGHT))
        if isinstance(module, torch.nn.Embedding):
            continue
        name = key.removesuffix(WEIGHT)
        expert = EXPERT.fullmatch(name)
        names.add(f"re:{re.escape(expert['experts'])}\\..*" if expert else name)
    return names
