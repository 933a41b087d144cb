"""What is said of a GPU; the driver's answers stand in where there is none."""

from __future__ import annotations

import pytest
import torch

from qlora_cli.train.callbacks.gpu_state import gpu_state


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 97)
    monkeypatch.setattr(torch.cuda, "temperature", lambda: 71)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda: 312_400)
    return monkeypatch


def test_it_is_said_as_nvidia_smi_says_it(card):
    assert gpu_state() == "97% 71 °C 312 W"


def test_what_the_driver_keeps_to_itself_is_left_out(card):
    def refuse():
        raise RuntimeError("NVML: not supported")

    card.setattr(torch.cuda, "power_draw", refuse)
    assert gpu_state() == "97% 71 °C"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_said():
    assert gpu_state() == ""


@pytest.mark.gpu
def test_a_real_card_tells_its_utilization_and_temperature():
    assert "%" in gpu_state()
    assert "°C" in gpu_state()
