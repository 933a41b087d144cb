"""Where a model runs and in which precision; the GPU's part is what it says of itself."""

from __future__ import annotations

import pytest
import torch

from qlora_cli.errors import RecipeError
from qlora_cli.model.device import dtype_name, pick_device, pick_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu_of(monkeypatch):
    """A GPU that says it has the given compute capability."""

    def describe(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")

    return describe


def test_without_a_gpu_the_model_runs_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == CPU


def test_with_a_gpu_the_model_runs_on_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert pick_device() == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((8, 9), torch.bfloat16), ((9, 0), torch.bfloat16)],
    ids=["T4", "A100", "RTX 4090", "H100"],
)
def test_auto_is_bfloat16_where_the_gpu_has_it(gpu_of, capability, dtype):
    gpu_of(capability)
    assert pick_dtype("auto", GPU) is dtype


def test_auto_is_float32_on_the_cpu():
    assert pick_dtype("auto", CPU) is torch.float32


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_a_dtype_that_is_named_is_taken(name):
    assert pick_dtype(name, CPU) is getattr(torch, name)


def test_bfloat16_on_a_gpu_without_it_is_refused_by_the_gpu_s_name(gpu_of):
    gpu_of((7, 5))
    with pytest.raises(RecipeError, match="Some GPU does not compute in it") as caught:
        pick_dtype("bfloat16", GPU)
    assert "float16" in caught.value.problems[0].hint


def test_float16_is_for_gpus(gpu_of):
    gpu_of((7, 5))
    assert pick_dtype("float16", GPU) is torch.float16
    with pytest.raises(RecipeError, match="no GPU"):
        pick_dtype("float16", CPU)


def test_a_dtype_is_called_as_in_the_recipe():
    assert dtype_name(torch.bfloat16) == "bfloat16"
