"""Which merges and exports keep the codes of a base in integers, and which options do not go with such a base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qlora_cli.deploy.checks import refuse_no_original, refuse_plain_base, refuse_unmergeable
from qlora_cli.deploy.export_options import ExportOptions, check_options, format_for
from qlora_cli.deploy.formats.adapter import check
from qlora_cli.deploy.formats.format import FormatOptions
from qlora_cli.deploy.integers import can_keep_codes
from qlora_cli.errors import ArgumentError
from qlora_cli.model.tuned import find_tuned
from tests.deploy.integers import save_integers

OUT = Path("out")


@pytest.fixture(scope="module")
def base(llama_folder, tmp_path_factory):
    """A base in 3 bits and groups of 64."""
    return save_integers(llama_folder, tmp_path_factory.mktemp("integers") / "base", bits=3, group_size=64)


def adapter_on(base, folder, **settings):
    """An adapter folder, found."""
    folder.mkdir()
    content = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(base), **settings}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(4, 2)}, folder / "adapter_model.safetensors")
    return find_tuned(folder)


@pytest.fixture
def of_groups(base, tmp_path):
    return adapter_on(base, tmp_path / "adapter", use_qalora=True, qalora_group_size=64)


@pytest.fixture
def of_columns(base, tmp_path):
    return adapter_on(base, tmp_path / "columns")


def test_only_an_update_of_groups_on_integers_keeps_codes(of_groups, of_columns, llama_folder, tmp_path):
    assert can_keep_codes(of_groups)
    assert not can_keep_codes(of_columns)
    assert not can_keep_codes(adapter_on(llama_folder, tmp_path / "plain", use_qalora=True))


@pytest.mark.parametrize(
    ("options", "is_kept", "quants"),
    [
        ({"format": "mlx"}, True, ("3bit",)),
        ({"format": "mlx", "quant": "3bit", "group_size": 64}, True, ("3bit",)),
        ({"format": "mlx", "quant": "4bit"}, False, None),
        ({"format": "mlx", "group_size": 32}, False, None),
        ({"format": "gguf"}, True, ("q4_1",)),
        ({"format": "gguf", "quant": "q4_1"}, True, ("q4_1",)),
        ({"format": "ollama"}, True, ("q4_1",)),
        ({"format": "gguf", "quant": "q4_k_m"}, False, None),
        ({"format": "gguf", "max_kl": 0.01}, False, None),  # the smallest type is looked for
        ({"format": "hf"}, False, None),
        ({"format": "compressed-tensors"}, False, None),
    ],
    ids=str,
)
def test_a_format_keeps_the_codes_where_no_other_type_or_group_is_named(options, is_kept, quants, of_groups):
    asked = ExportOptions(**options)
    check_options(asked)
    form = format_for(of_groups, asked)
    assert form.keeps_codes == is_kept
    if is_kept:
        assert (form.quants, form.loses_nothing) == (quants, True)


def test_an_update_of_columns_is_exported_from_plain_weights(of_columns):
    for name in ("mlx", "gguf", "ollama"):
        assert not format_for(of_columns, ExportOptions(format=name)).keeps_codes


def test_qa_lora_is_merged_on_integers_and_refused_elsewhere(of_groups, llama_folder, tmp_path):
    refuse_unmergeable(of_groups)
    with pytest.raises(ArgumentError, match="QA-LoRA, a variant of LoRA, which `qlora merge` does not fold"):
        refuse_unmergeable(adapter_on(llama_folder, tmp_path / "plain", use_qalora=True))


@pytest.mark.parametrize("onto", ["original", "auto"])
def test_integers_are_all_that_such_a_base_holds(onto, of_columns):
    with pytest.raises(ArgumentError, match=f"--onto {onto} cannot be had.* holds its weights in"):
        refuse_no_original(of_columns, onto)


def test_the_base_alone_is_written_for_adapters_that_engines_take(of_groups, of_columns):
    refuse_plain_base(of_columns, "dequantized", OUT)
    with pytest.raises(ArgumentError, match="no engine puts a QA-LoRA adapter onto plain weights"):
        refuse_plain_base(of_groups, "dequantized", OUT)


def test_an_adapter_alone_is_not_handed_on_without_a_base_that_others_open(of_columns):
    with pytest.raises(ArgumentError, match="stored in int3, in a layout of ours") as caught:
        check(of_columns, FormatOptions())
    assert "--engine vllm" in caught.value.problems[0].hint
