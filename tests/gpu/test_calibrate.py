"""A calibration on a real GPU: its figures against the driver's and the card's."""

from __future__ import annotations

import torch

from qlora_cli.plan.calibrate import calibrate
from qlora_cli.plan.machine.calibration import find_overheads, save_overheads
from qlora_cli.plan.machine.gpus import card_of
from qlora_cli.plan.report import choose_target
from tests.gpu.support import NEEDS_GPU

pytestmark = NEEDS_GPU

MIB = 2**20


def test_its_figures_are_possible_and_later_plans_use_them(empty_cache):
    found = calibrate()
    assert found.gpu == torch.cuda.get_device_name()
    assert found.memory_bytes == torch.cuda.mem_get_info()[1]
    assert 100 * MIB < found.context_bytes < 2048 * MIB
    # 8,320 KiB or 32 MiB for each of two threads; some versions of torch keep cuBLASLt's workspaces beside them.
    assert 8 * MIB < found.cublas_bytes < 256 * MIB
    card = card_of(found.gpu)
    assert found.reached_tflops > 1
    assert card is None or found.reached_tflops < card.dense_tflops
    save_overheads(found)
    assert find_overheads(lambda name: name == found.gpu) == found
    assert choose_target(None, None).device.overheads == found


def test_it_gives_its_memory_back(empty_cache):
    before = torch.cuda.memory_allocated()
    calibrate()
    assert torch.cuda.memory_allocated() <= before + 64 * MIB
