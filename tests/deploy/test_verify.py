import math

import pytest
import torch

from qlora_cli.deploy.verify import Agreement, compare, record_logits, refuse_disagreement
from qlora_cli.errors import NumericError
from tests.deploy.models import load_base


def test_kl_is_the_one_of_the_textbook():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    agreement = compare([p.log()[None]], [q.log()[None]])
    assert agreement.mean_kl == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), abs=1e-6)


def test_figures_are_over_all_positions_of_all_rows():
    even, first, second = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0], [0.0, 3.0]])
    agreement = compare([first, second], [first, -second])
    assert (agreement.num_positions, agreement.max_logit_difference) == (3, 6.0)
    assert agreement.top1_agreement == pytest.approx(1 / 3)
    assert compare([even], [even]).mean_kl == 0.0


def test_logits_are_those_of_the_last_positions(llama_folder):
    model = load_base(llama_folder)
    ids = [number % 200 for number in range(100)]
    [recorded] = record_logits(model, [ids])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0, 36:]
    assert torch.equal(recorded, expected)


@pytest.mark.parametrize("mean_kl", [0.2, math.nan])
def test_a_kl_above_the_bound_or_not_a_number_is_refused(mean_kl):
    with pytest.raises(NumericError, match="not the model that was trained"):
        refuse_disagreement(Agreement(1, 0.0, mean_kl, 1.0), max_kl=0.1)


def test_logits_that_are_not_numbers_give_no_agreement():
    assert math.isnan(compare([torch.zeros(1, 2)], [torch.full((1, 2), math.nan)]).mean_kl)
