"""What lies beside the weights of a merged model: the base's own files, with what training has decided written in.

Config, processor, code and all else stay as the base's authors wrote them, for whichever library or version they
wrote them for.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from qlora_cli.data.render.renderer import Renderer

OLDER_NAMES = ("rope_theta", "rope_scaling", "rope_local_base_freq", "torch_dtype", "dtype")
"""Keys of config.json that may be there twice, under an older name and a newer one."""


def write_config(folder: Path, changes: dict[str, Any], of_text: Mapping[str, Any] | None = None) -> None:
    """Write what the merge changes into the base's config.json, and the names that older libraries look for.

    Args:
        folder: holds the base's config.json.
        changes: keys of the text model, or of the whole where it has no part of its own; None takes a key out.
        of_text: keys of the text model that its config may not have written out.
    """
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    text = content.get("text_config")
    (text if isinstance(text, dict) else content).update(of_text or {})
    for name, value in changes.items():
        for section in _sections_with(content, name):
            if value is None:
                section.pop(name, None)
            else:
                section[name] = value
    with_older = copy.deepcopy(content)
    _add_older_names(with_older)
    if _is_read_alike(content, with_older):
        content = with_older
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def vocabulary_of(folder: Path) -> int | None:
    """The size of the vocabulary that a config.json names; None where it names none."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    [section, *_] = _sections_with(content, "vocab_size")
    size = section.get("vocab_size")
    return size if isinstance(size, int) else None


def _sections_with(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The parts of a config that have a key; the outermost where none has."""
    text = content.get("text_config")
    sections = [section for section in (content, text) if isinstance(section, dict) and name in section]
    return sections or [content]


def _add_older_names(content: dict[str, Any]) -> None:
    """Add what transformers before 5 reads and later ones write under another name.

    Without `rope_theta` it takes 10,000 for the base of the rotation, whatever `rope_parameters` say, and the model
    computes something else without an error.
    """
    sections = [content, *(part for part in content.values() if isinstance(part, dict) and "model_type" in part)]
    for section in sections:
        rope = section.get("rope_parameters")
        if isinstance(rope, dict) and isinstance(local := rope.get("sliding_attention"), dict):
            rope = rope.get("full_attention")
            if "rope_theta" in local:
                section.setdefault("rope_local_base_freq", local["rope_theta"])
        if isinstance(rope, dict) and "rope_theta" in rope:
            section.setdefault("rope_theta", rope["rope_theta"])
            scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
            if scaling.keys() - {"rope_type"} or scaling.get("rope_type", "default") != "default":
                section.setdefault("rope_scaling", scaling)
        if "dtype" in section:
            section.setdefault("torch_dtype", section["dtype"])


def _is_read_alike(content: dict[str, Any], with_older: dict[str, Any]) -> bool:
    """Whether transformers makes the same of a config with older names beside the new ones.

    Of some it takes the older name for the truth, such as `rope_scaling` where each kind of layer has a rotation of its
    own. A config whose class is not known here stays as it is.
    """
    if content.get("model_type") not in CONFIG_MAPPING:
        return False
    kind = CONFIG_MAPPING[content["model_type"]]
    try:
        read, read_older = (kind.from_dict(copy.deepcopy(each)).to_dict() for each in (content, with_older))
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return _without_older_names(read) == _without_older_names(read_older)


def _without_older_names(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_older_names(part) for name, part in value.items() if name not in OLDER_NAMES}


def write_generation_settings(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> None:
    """Let `generate` stop where the trained answers stop; all other settings stay the base's.

    Args:
        folder: holds the base's generation_config.json, if it has one.
        model: whose config stands in for it otherwise.
        tokenizer: for padding, where the base names no token for it.
        renderer: knows the tokens that end a turn.
    """
    path = folder / "generation_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
    else:
        settings = GenerationConfig.from_model_config(model.config).to_diff_dict()
    settings.pop("_from_model_config", None)  # it would let the model's config win over what is written here
    value = settings.get("eos_token_id")
    known = set(value if isinstance(value, list) else [value]) - {None}
    if not known.issuperset(renderer.end_of_turn_ids):
        settings["eos_token_id"] = sorted({*known, *renderer.end_of_turn_ids})
    if settings.get("pad_token_id") is None and tokenizer.pad_token_id is not None:
        settings["pad_token_id"] = tokenizer.pad_token_id
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, renderer: Renderer, *, trust_code: bool) -> None:
    """Put the tokenizer and the chat template of training beside the base's files.

    Where training used the base's own tokenizer, its files stay as they are, in the form that older libraries read.

    Args:
        folder: holds the base's tokenizer.
        tokenizer: that of training.
        renderer: its template is in force, also where the base has none.
        trust_code: the tokenizer may be code of the base.
    """
    path = folder / "tokenizer_config.json"
    own = _read_object(path)
    there = _tokenizer_in(folder, trust_code=trust_code)
    is_same = there is not None and _are_same(there, tokenizer)
    if not is_same:
        tokenizer.save_pretrained(folder)
    settings = own if is_same else _read_object(path)
    if "tokenizer_class" in own:
        settings["tokenizer_class"] = own["tokenizer_class"]
    _use_older_names(settings)
    if settings.get("pad_token") is None and tokenizer.pad_token is not None:
        settings["pad_token"] = tokenizer.pad_token
    if there is None or there.chat_template != renderer.template:
        if "chat_template" in settings:  # an older library takes it, and not the file
            settings["chat_template"] = renderer.template
        (folder / "chat_template.jinja").write_text(renderer.template, encoding="utf-8")
    if settings != _read_object(path):
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _use_older_names(settings: dict[str, Any]) -> None:
    """Names for what transformers 5 calls otherwise in a tokenizer_config.json; it reads the older ones too."""
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, list):
        del settings["extra_special_tokens"]
        settings["additional_special_tokens"] = extra


def _read_object(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _tokenizer_in(folder: Path, *, trust_code: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder; None where it has none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_code)
    except (OSError, ValueError, KeyError):
        return None
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _are_same(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers cut every text alike."""
    if first.get_vocab() != second.get_vocab() or first.eos_token != second.eos_token:
        return False
    backends = (getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (first, second))
    return len({backend and backend.to_str() for backend in backends}) == 1
