import json
from dataclasses import replace

import pytest

from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.evaluate.comparison import Evaluation, evaluate_run, write_comparison
from qlora_cli.evaluate.tasks import load_task
from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.model.initialization import set_adapter_values, split_principal
from qlora_cli.model.tuned import Tuned
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.eval_schema import TaskSection
from qlora_cli.recipe.schema import LoraSection, ModelSection, QuantizationSection


@pytest.fixture(scope="module")
def evaluation(tuned, chat_data):
    renderer = Renderer(tuned.tokenizer)
    rows = renderer.render(read_examples(SourceSection(path=str(chat_data))))[:6]
    section = TaskSection(path=str(chat_data), metrics=("exact_match", "contains"), max_new_tokens=6, limit=5)
    return Evaluation(rows, [load_task(section, renderer)], batch_size=4)


@pytest.fixture(scope="module")
def comparison(tuned, evaluation):
    return evaluate_run(tuned, evaluation)


def test_the_base_column_is_the_base_without_the_adapter(tuned, evaluation, comparison, tiny_base):
    bare = load_base(ModelSection(base_model=str(tiny_base)), QuantizationSection()).eval()
    alone = evaluate_run(Tuned(bare, tuned.tokenizer, tuned.source), evaluation)
    assert alone.base is None
    assert comparison.base.score.loss == pytest.approx(alone.tuned.score.loss, rel=1e-6)
    assert comparison.base.answers == alone.tuned.answers


def test_the_adapter_shows_in_the_tuned_column(comparison):
    assert comparison.tuned.score.loss != pytest.approx(comparison.base.score.loss, rel=1e-4)
    assert comparison.tuned.answers != comparison.base.answers


def test_every_measure_stands_in_the_table(comparison):
    names = [row[0] for row in comparison.table()]
    assert names == ["loss", "perplexity", "sums exact_match", "sums contains"]


def test_the_results_and_every_answer_are_written(comparison, tmp_path):
    write_comparison(comparison, tmp_path / "eval")
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["measures"][0]["tuned"] == comparison.tuned.score.loss
    answers = [json.loads(line) for line in (tmp_path / "eval" / "answers-sums.jsonl").read_text().splitlines()]
    assert len(answers) == 5
    assert answers[0]["prompt"] == "add 0 and 1"
    assert answers[0]["reference"] == "1"
    assert set(answers[0]["correct"]) == {"exact_match", "contains"}


def test_after_pissa_the_base_column_is_the_original_base_not_the_residual(
    tuned, evaluation, comparison, tiny_base, tmp_path
):
    model, lora = ModelSection(base_model=str(tiny_base)), LoraSection(r=4, init_lora_weights="pissa")
    values = split_principal(model, lora, tmp_path / "residual")
    residual = load_base(model, QuantizationSection(), source=str(tmp_path / "residual"))
    adapted = attach_adapter(residual, lora).eval()
    set_adapter_values(adapted, values)
    source = replace(tuned.source, quantization=QuantizationSection(), base_source=str(tmp_path / "residual"))
    after_pissa = evaluate_run(Tuned(adapted, tuned.tokenizer, source), evaluation)
    assert after_pissa.base.score.loss == pytest.approx(comparison.base.score.loss, rel=1e-6)
