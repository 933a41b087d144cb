"""Names of cards as people and drivers write them, and facts that hang together."""

from __future__ import annotations

import pytest

from qlora_cli.constants import AMPERE
from qlora_cli.errors import ArgumentError
from qlora_cli.plan.machine.gpus import Gpu, all_cards, find_card

FACTS = ("memory_mib", "bandwidth_gb_s", "dense_tflops", "compute_capability", "num_multiprocessors")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti 16GB"),
        ("4060ti", "RTX 4060 Ti 16GB"),
        ("Tesla T4", "T4"),
        ("a10g", "A10G"),
        ("a10", "A10"),
        ("l40s", "L40S"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("v100-32", "V100 32GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB SXM"),
        ("NVIDIA H100 PCIe", "H100 80GB PCIe"),
        ("6000 ada", "RTX 6000 Ada"),
        ("A6000", "RTX A6000"),
    ],
)
def test_a_card_is_found_however_it_is_written(written, name):
    assert find_card(written).name == name


@pytest.mark.parametrize("name", list(all_cards()))
def test_a_card_is_found_by_its_own_name(name):
    assert find_card(name).name == name


@pytest.mark.parametrize(("written", "name"), [("4009", "RTX 4090"), ("rtx5900", "RTX 5090")])
def test_a_mistyped_card_gets_a_suggestion(written, name):
    with pytest.raises(ArgumentError) as caught:
        find_card(written)
    assert name in caught.value.problems[0].hint.partition("For another card")[0]


@pytest.mark.parametrize("written", ["", "rtx", "banana", "RTX 4070 Ti", "RTX 3080 12GB"])
def test_a_card_without_facts_is_refused(written):
    with pytest.raises(ArgumentError) as caught:
        find_card(written)
    assert "--memory-gb" in caught.value.problems[0].hint


@pytest.mark.parametrize("card", all_cards().values(), ids=lambda card: card.name)
def test_facts_are_of_possible_size_and_have_a_source(card: Gpu):
    assert 8_000 <= card.memory_mib <= 200_000
    assert 200 <= card.bandwidth_gb_s <= 10_000
    assert 20 <= card.dense_tflops <= 3_000
    assert (7, 0) <= card.compute_capability <= (12, 1)
    assert 20 <= card.num_multiprocessors <= 200
    assert card.source.startswith("https://")
    assert set(card.checked) <= set(FACTS)


def test_cards_before_ampere_have_no_bfloat16():
    older = {card.name for card in all_cards().values() if card.device.capability < AMPERE}
    assert older == {"T4", "V100 16GB", "V100 32GB"}


def test_a_process_can_have_less_than_the_maker_says():
    card = find_card("4090")
    assert 23 * 2**30 < card.memory_bytes < 24 * 10**9 * 2**30 / 10**9
