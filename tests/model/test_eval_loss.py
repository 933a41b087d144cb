import math

import pytest
import torch

from qlora_cli.data.collator import Collator
from qlora_cli.model.base import load_base
from qlora_cli.model.eval_loss import Score, score_rows
from qlora_cli.recipe.schema import ModelSection


@pytest.fixture(scope="module")
def base(tiny_base):
    return load_base(ModelSection(base_model=str(tiny_base)), None)


def batches(batch_size):
    lengths = [5, 40, 9, 22, 3]
    rows = [
        {"input_ids": list(range(n)), "labels": [-100] * 2 + list(range(2, n)), "seq_lengths": [n]} for n in lengths
    ]
    return [Collator(0)(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]


def test_the_loss_is_the_mean_over_tokens_whatever_the_batches(base):
    labels = batches(1)
    losses = [base(input_ids=b["input_ids"], labels=b["labels"]).loss.item() for b in labels]
    counts = [int((b["labels"] != -100).sum()) for b in labels]
    by_hand = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    for batch_size in (1, 2, 5):
        score = score_rows(base, batches(batch_size))
        assert score.num_tokens == sum(counts)
        assert score.loss == pytest.approx(by_hand, rel=1e-6)


def test_slicing_a_batch_changes_nothing(base, monkeypatch):
    whole = score_rows(base, batches(5))
    monkeypatch.setattr("qlora_cli.model.eval_loss.MAX_LOGITS", 1)
    assert score_rows(base, batches(5)).loss == pytest.approx(whole.loss, rel=1e-6)


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_and_the_gradients_are_left_as_they_were(base, mode):
    base.train(mode)
    score_rows(base, batches(2))
    assert base.training is mode
    assert torch.is_grad_enabled()


def test_rows_without_labels_are_refused(base):
    empty = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.full((1, 2), -100)}
    with pytest.raises(ValueError, match="no token"):
        score_rows(base, [empty])


def test_perplexity_is_the_exponential_of_the_loss():
    assert Score(math.log(8), 1).perplexity == pytest.approx(8)
    assert Score(1e6, 1).perplexity == math.inf
