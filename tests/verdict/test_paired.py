"""Verdicts against published figures, enumerations and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel

from qlora_cli.errors import NumericError
from qlora_cli.verdict.paired import Paired, holm, interval, judge_pairs
from qlora_cli.verdict.proportions import (
    exact_sign_p_value,
    exact_sign_p_values,
    score_edges,
    score_interval,
    share_interval,
)
from qlora_cli.verdict.ratios import compare_rows, standard_error
from qlora_cli.verdict.sensitivity import of_signs, sign_power


def verdict(before, after, weights=None, **options):
    return judge_pairs({"measure": Paired(before, after, weights, **options)})["measure"]


def signs(gained, lost, total):
    """0/1 values with that many questions gained and lost."""
    same = total - gained - lost
    return [0] * gained + [1] * lost + [1] * same, [1] * gained + [0] * lost + [1] * same


def test_the_interval_of_two_shares_is_the_published_one():
    # Fagerland, Lydersen and Laake 2014, airway reactivity in 21 children: Tango's interval -0.517 to -0.026.
    assert [round(edge, 3) for edge in score_interval(1, 7, 21)] == [-0.517, -0.026]


def test_the_interval_of_two_shares_holds_what_a_score_test_does_not_reject():
    """Tango 1998, equation 3, with the variance maximized over a grid instead of solved."""
    gained, lost, total = 12, 5, 60
    low, high = score_interval(gained, lost, total)
    for delta, is_inside in ((low - 0.003, False), (low + 0.003, True), (high - 0.003, True), (high + 0.003, False)):
        losses = np.linspace(max(0, -delta) + 1e-9, (1 - delta) / 2 - 1e-9, 400_001)
        same = 1 - 2 * losses - delta
        likelihood = gained * np.log(losses + delta) + lost * np.log(losses) + (total - gained - lost) * np.log(same)
        best = losses[np.argmax(likelihood)]
        statistic = (gained - lost - total * delta) / math.sqrt(total * (2 * best + delta - delta**2))
        assert (abs(statistic) < 1.959964) == is_inside


@pytest.mark.parametrize(("gained", "lost"), [(9, 1), (0, 0), (6, 0), (43, 18), (5, 5)])
def test_the_p_value_of_right_and_wrong_is_the_binomial_tests(gained, lost):
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert exact_sign_p_value(gained, lost) == pytest.approx(expected)


@pytest.mark.parametrize("total", [6, 50, 200])
def test_nothing_is_called_better_with_an_interval_over_zero(total):
    gained, lost = np.meshgrid(np.arange(total + 1.0), np.arange(total + 1.0))
    gained, lost = gained[gained + lost <= total], lost[gained + lost <= total]
    low, high = score_edges(gained, lost, total)
    is_found = exact_sign_p_values(gained, lost) < 0.05
    assert is_found.any()
    assert not (is_found & (low <= 0) & (high >= 0)).any()


def test_the_interval_of_one_share_is_wilsons():
    # Brown, Cai and DasGupta 2001 recommend it for small numbers; 0 of 20 gives 0 to z^2 / (20 + z^2).
    low, high = share_interval(0, 20)
    assert low == 0
    assert high == pytest.approx(1.959964**2 / (20 + 1.959964**2))
    assert interval([1, 0, 1, 1]) == share_interval(3, 4)


def test_the_standard_error_is_the_paired_one_of_miller():
    """Miller 2024, arXiv:2411.00640, section 4.2: Var(A) + Var(B) - 2 Cov(A, B), over the number of questions."""
    random = np.random.default_rng(0)
    before = random.random(40)
    after = before * 0.8 + random.random(40) * 0.3
    covariance = np.cov(before, after)
    expected = math.sqrt((covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / 40)
    assert standard_error(after - before, np.ones(40)) == pytest.approx(expected)


def test_rows_of_equal_weight_are_never_surer_than_a_paired_t_test():
    random = np.random.default_rng(0)
    before = random.random(60)
    after = before + random.normal(0.05, 0.2, 60)
    found, expected = compare_rows(after - before, np.ones(60)), ttest_rel(after, before)
    low, high = expected.confidence_interval()
    assert found.p_value >= expected.pvalue
    assert found.low <= low < high <= found.high
    assert found.high - found.low < 1.1 * (high - low)


def test_a_loss_is_per_token_over_rows_of_different_length():
    tokens = np.array([10.0, 100, 1000] * 20)
    before = 2.0 * tokens
    after = before - 0.1 * tokens + np.tile([3.0, -3.0], 30)
    found = verdict(before, after, tokens, higher_is_better=False)
    assert found.difference == pytest.approx(-0.1)
    assert found.low < -0.1 < found.high < 0
    assert found.outcome == "better"


@pytest.mark.parametrize(
    ("gained", "lost", "higher_is_better", "outcome"),
    [(30, 10, True, "better"), (10, 30, True, "worse"), (30, 10, False, "worse"), (20, 20, True, "no evidence")],
)
def test_the_outcome_has_the_measures_direction(gained, lost, higher_is_better, outcome):
    assert verdict(*signs(gained, lost, 100), higher_is_better=higher_is_better).outcome == outcome


def test_measures_that_are_asked_together_share_the_false_alarms():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979, worked by hand
    alone = signs(17, 6, 100)
    assert verdict(*alone).outcome == "better"
    others = {f"other {index}": Paired(*signs(5, 5, 100)) for index in range(4)}
    found = judge_pairs({"first": Paired(*alone), **others})["first"]
    assert (found.p_value, found.outcome) == (verdict(*alone).p_value, "no evidence")
    assert found.p_adjusted == pytest.approx(5 * found.p_value)
    assert "5 measures" in found.sentence


def test_wins_and_losses_of_a_judge_are_a_sign_test():
    outcomes = [1] * 12 + [-1] * 2 + [0] * 20
    found = verdict([0] * 34, outcomes)
    assert found.p_value == pytest.approx(binomtest(12, 14).pvalue)
    assert "12 gained, 2 lost" in found.sentence


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_questions_can_show_nothing_and_it_is_said(count):
    found = verdict([0] * count, [1] * count)
    assert (found.outcome, found.smallest_detectable) == ("no evidence", math.inf)
    assert "cannot show" in found.sentence
    assert found.rows_for_half > 0


def test_six_questions_are_the_least_that_show_anything():
    assert verdict([0] * 6, [1] * 6).outcome == "better"


@pytest.mark.parametrize("values", [[0] * 50, [1] * 50, [0.25] * 50, [0, 1] * 25])
def test_models_that_answer_alike_are_not_known_to_be_equal(values):
    found = verdict(values, values)
    assert (found.difference, found.p_value, found.outcome) == (0, 1, "no evidence")
    assert found.low < 0 < found.high


def test_losses_that_are_the_same_in_every_row_are_said_to_be():
    found = verdict([5.0, 7, 9], [5.0, 7, 9], [2, 3, 4], higher_is_better=False)
    assert (found.low, found.difference, found.high) == (0, 0, 0)
    assert "the same in every row" in found.sentence


@pytest.mark.parametrize(("count", "outcome"), [(3, "no evidence"), (8, "better")])
def test_rows_that_all_moved_by_the_same_are_judged_by_their_number(count, outcome):
    found = verdict([2.0] * count, [1.5] * count, [1.0] * count, higher_is_better=False)
    assert found.outcome == outcome
    assert (found.high < 0) == (outcome == "better")


def test_one_row_bounds_nothing_but_a_score():
    loss = verdict([5.0], [4.0], [3.0], higher_is_better=False)
    assert (loss.low, loss.high, loss.outcome) == (-math.inf, math.inf, "no evidence")
    score = verdict([0.5], [0.75])
    assert (score.low, score.high) == (-1, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["before", "after", "weights"])
def test_a_value_that_is_not_finite_is_refused_with_its_place(bad, place):
    values = {"before": [1.0, 2, 3], "after": [1.0, 2, 4], "weights": [1.0, 1, 1]}
    values[place][1] = bad
    with pytest.raises(NumericError, match="measure: value 2 of 3 is"):
        judge_pairs({"measure": Paired(**values)})


def test_weights_below_zero_are_refused():
    with pytest.raises(NumericError, match="weight -1"):
        verdict([1.0, 2], [1.0, 2], [1.0, -1])


@pytest.mark.parametrize(
    ("before", "after", "weights"),
    [([], [], None), ([1.0], [1.0, 2], None), ([1.0], [1.0], [1.0, 2]), ([1.0], [1.0], [0.0]), ([0.0], [0.0], [0.0])],
)
def test_values_that_do_not_belong_together_are_a_mistake_of_the_caller(before, after, weights):
    with pytest.raises(ValueError, match="measure"):
        verdict(before, after, weights)


def test_a_row_without_weight_is_left_out():
    tokens, before, after = [5.0, 0, 6, 7], [4.0, 0, 5, 8], [3.0, 0, 5, 6]
    kept = verdict([4.0, 5, 8], [3.0, 5, 6], [5.0, 6, 7])
    assert verdict(before, after, tokens) == kept
    assert kept.num_questions == 3


def test_the_same_values_have_the_same_verdict():
    random = np.random.default_rng(1)
    pairs = {"loss": Paired(random.random(80), random.random(80), random.integers(1, 50, 80))}
    assert judge_pairs(pairs) == judge_pairs(pairs)
    assert pytest.approx(interval(pairs["loss"].before)) == interval(list(pairs["loss"].before))


@pytest.mark.parametrize(("size", "changed", "delta"), [(100, 0.3, 0.2), (40, 0.5, 0.3), (1000, 0.1, 0.02)])
def test_the_power_is_that_of_simulated_tests(size, changed, delta):
    random = np.random.default_rng(5)
    counts = random.multinomial(size, [(changed + delta) / 2, (changed - delta) / 2, 1 - changed], 40_000)
    simulated = (exact_sign_p_values(counts[:, 0], counts[:, 1]) < 0.05).mean()
    assert sign_power(size, changed, delta, 0.05) == pytest.approx(simulated, abs=0.01)


@pytest.mark.parametrize(("changed", "size"), [(0, 100), (10, 100), (40, 100), (130, 1319)])
def test_as_many_more_questions_as_are_said_show_half_of_it(changed, size):
    found = of_signs(changed, size, 0.05)
    share = (changed + 1) / (size + 2)
    half, more = found.smallest / 2, size + found.rows_for_half
    assert sign_power(size, max(share, found.smallest), found.smallest, 0.05) == pytest.approx(0.8, abs=0.01)
    assert sign_power(more, max(share, half), half, 0.05) == pytest.approx(0.8, abs=0.02)


def test_rows_show_half_with_four_times_as_many():
    random = np.random.default_rng(2)
    before = random.random(200)
    found = verdict(before, before + random.normal(0, 0.1, 200), [1.0] * 200)
    assert found.rows_for_half == 600
    # (1.96 + 0.84) standard errors, Miller 2024, section 5.
    assert found.smallest_detectable == pytest.approx(2.8 * 0.1 / math.sqrt(200), rel=0.15)


def test_an_interval_that_leaves_zero_out_while_the_test_does_not_is_explained():
    found = verdict(*signs(32, 18, 100))
    assert found.low > 0
    assert found.outcome == "no evidence"
    assert "the exact test is not sure" in found.sentence


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("size", [50, 400])
def test_intervals_of_skewed_losses_cover_the_truth(size):
    """A cell of `benchmarks/verdicts.py`, with few repetitions: 95 +- 3%."""
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(300):
        tokens = np.round(np.exp(random.normal(4.6, 0.45, size)))
        found = compare_rows(tokens * (0.15 - 0.2 * random.exponential(size=size)), tokens)
        covered += found.low <= -0.05 <= found.high
    assert 0.92 <= covered / 300 <= 0.985
