"""Models on the same questions, from the loaded weights to what is written."""

from __future__ import annotations

import json
import math
import signal

import pytest
import torch
from torch.nn.functional import cross_entropy

from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import ArgumentError, DataError, StoppedBySignal
from qlora_cli.evaluate.contest import arrange
from qlora_cli.evaluate.evaluation import evaluate
from qlora_cli.evaluate.kept import kept_in
from qlora_cli.evaluate.request import EvalRequest, measure, prepare_tasks, task_sections
from qlora_cli.evaluate.table import tables
from qlora_cli.evaluate.tasks import generation, held_out
from qlora_cli.evaluate.written import write_outcome
from qlora_cli.interruption import Interruption
from qlora_cli.model.tuned import find_tuned, load_tuned
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.eval_schema import TaskSection
from qlora_cli.run.eval_results import read_results


@pytest.fixture(scope="module")
def source(tuned, tmp_path_factory):
    """An adapter on the tiny base, both in float32."""
    folder = tmp_path_factory.mktemp("adapters") / "one"
    tuned.model.save_pretrained(folder)
    return find_tuned(folder)


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    """Five questions with choices of other lengths."""
    rows = [
        {"question": f"add {n} and 1", "choices": [str(n), str(n + 1), "many more than that"], "answer": n % 3}
        for n in range(5)
    ]
    file = tmp_path_factory.mktemp("choices") / "sums_mc.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def request_(chat_data, choices):
    section = TaskSection(path=str(chat_data), metrics=("exact_match", "chrf"), max_new_tokens=6, limit=5)
    return EvalRequest(chat_data, (section, TaskSection(path=str(choices))), batch_size=4)


@pytest.fixture(scope="module")
def outcome(source, request_):
    tasks, batch_size = prepare_tasks(source, request_)
    return evaluate(arrange([source], None), tasks, batch_size)


def test_the_loss_is_the_mean_over_all_tokens_one_row_at_a_time(source, outcome, chat_data):
    loaded = load_tuned(source)
    rows = Renderer(loaded.tokenizer).render(read_examples(SourceSection(path=str(chat_data))))
    total, count, num_bytes = 0.0, 0, 0
    for row in rows:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        total += cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
        num_bytes += len(loaded.tokenizer.decode(labels[labels != -100], skip_special_tokens=True).encode())
    figures = {m.measure: m.values["tuned"] for m in outcome.results.measures if m.task == "held-out"}
    assert figures["loss"].value == pytest.approx(total / count, rel=1e-5)
    assert figures["loss"].count == count
    assert figures["perplexity"].value == pytest.approx(math.exp(total / count), rel=1e-4)
    assert figures["bits_per_byte"].value == pytest.approx(total / math.log(2) / num_bytes, rel=1e-5)
    assert figures["loss"].low < figures["loss"].value < figures["loss"].high


def test_the_base_is_the_model_without_its_adapter(source, outcome, tiny_base, request_):
    tasks, batch_size = prepare_tasks(find_tuned(tiny_base), request_)
    alone = evaluate(arrange([find_tuned(tiny_base)], None), tasks, batch_size)
    assert alone.results.verdicts == []
    for measure_ in outcome.results.measures:
        [same] = [m for m in alone.results.measures if (m.task, m.measure) == (measure_.task, measure_.measure)]
        assert same.values["tuned"].value == pytest.approx(measure_.values["base"].value, rel=1e-5)
        assert measure_.values["tuned"] != measure_.values["base"] or measure_.unit in ("share", "score")


def test_the_choice_that_is_taken_is_the_likeliest_by_hand(source, outcome, choices):
    loaded = load_tuned(source)
    right = {"acc": [], "acc_norm": []}
    for line in choices.read_text().splitlines():
        row = json.loads(line)
        prompt = f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
        start = len(loaded.tokenizer(prompt).input_ids)
        sums = []
        for choice in row["choices"]:
            ids = loaded.tokenizer(prompt + choice, return_tensors="pt").input_ids
            with torch.no_grad():
                logs = loaded.model(ids).logits[0].log_softmax(-1)
            sums.append(sum(logs[at - 1, ids[0, at]].item() for at in range(start, ids.shape[1])))
        by_byte = [one / len(choice) for one, choice in zip(sums, row["choices"], strict=True)]
        right["acc"].append(float(sums.index(max(sums)) == row["answer"]))
        right["acc_norm"].append(float(by_byte.index(max(by_byte)) == row["answer"]))
    measured = outcome.scores["sums_mc"]["tuned"].measures
    assert {name: list(measured[name].values) for name in right} == right


def test_every_judged_measure_has_a_verdict_and_all_are_asked_together(outcome):
    asked = [(one.task, one.measure, one.model, one.against) for one in outcome.results.verdicts]
    assert asked == [
        ("held-out", "loss", "tuned", "base"),
        ("sums", "exact_match", "tuned", "base"),
        ("sums", "sentence_chrf", "tuned", "base"),
        ("sums_mc", "acc", "tuned", "base"),
        ("sums_mc", "acc_norm", "tuned", "base"),
        ("general text", "loss", "tuned", "base"),
    ]
    assert "after Holm over 6 measures" in outcome.results.verdicts[0].sentence


def test_the_results_are_read_back_as_they_were_written(outcome, tmp_path):
    write_outcome(outcome, tmp_path / "eval")
    stored = read_results(tmp_path / "eval")
    assert stored.as_dict() == outcome.as_dict() == json.loads((tmp_path / "eval/results.json").read_text())
    answers = [json.loads(line) for line in (tmp_path / "eval/answers-sums.jsonl").read_text().splitlines()]
    assert (len(answers), answers[0]["prompt"], answers[0]["reference"]) == (5, "add 0 and 1", "1")
    assert answers[0]["answers"].keys() == answers[0]["ended"].keys() == {"base", "tuned"}
    assert answers[0]["scores"].keys() == {"exact_match", "chrf", "sentence_chrf"}
    assert (tmp_path / "eval/adapter_health.json").is_file()


def test_the_losses_of_single_rows_add_up_to_the_figures_of_the_table(outcome, tmp_path):
    write_outcome(outcome, tmp_path / "eval")
    rows = [json.loads(line) for line in (tmp_path / "eval/losses.jsonl").read_text().splitlines()]
    for one in outcome.results.measures:
        if one.measure == "loss" and one.source is None:
            for model, found in one.values.items():
                own = [row for row in rows if (row["task"], row["model"]) == (one.task, model)]
                assert sum(row["nats"] for row in own) / sum(row["tokens"] for row in own) == pytest.approx(found.value)
                assert len({row["row"] for row in own}) == len(own) > 1


def test_the_table_fits_80_columns(outcome):
    [table] = tables(outcome.results)
    assert table.columns == ("measure", "base", "tuned", "difference [95%]", "verdict")
    assert max(map(len, table.as_text().splitlines())) <= 80


def test_two_models_on_one_base_share_it_and_a_folder_without_an_adapter_is_compared_with_it(source, tiny_base):
    contest = arrange([source, find_tuned(tiny_base)], None)
    assert [entrant.name for entrant in contest.entrants] == ["base", "one", "tiny-base"]
    assert contest.pairs == [("one", "base"), ("tiny-base", "base")]


def test_against_another_folder_there_is_no_base(source, tiny_base):
    contest = arrange([source], find_tuned(tiny_base))
    assert [(entrant.name, entrant.role) for entrant in contest.entrants] == [
        ("tiny-base", "other"),
        ("tuned", "tuned"),
    ]
    assert contest.pairs == [("tuned", "tiny-base")]


def test_an_evaluation_leaves_results_and_nothing_it_kept_on_the_way(source, request_, outcome):
    again = measure([source], request_)
    assert again.as_dict() == outcome.as_dict()
    names = {path.name for path in (source.folder / "eval").iterdir()}
    assert names == {"results.json", "losses.jsonl", "answers-sums.jsonl", "adapter_health.json", ".qlora_files.json"}


def test_a_prompt_that_fills_the_context_is_refused_with_its_line(source, tmp_path):
    rows = [{"instruction": "short", "output": "1"}, {"instruction": "long " * 110, "output": "1"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks, _ = prepare_tasks(source, EvalRequest(tasks=task_sections([tmp_path / "rows.jsonl"], [])))
    with pytest.raises(ArgumentError, match="the context of base is 512") as caught:
        evaluate(arrange([source], None), tasks, 4)
    assert caught.value.problems[0].place.endswith("rows.jsonl:2")


def test_an_answer_near_the_end_of_the_context_gets_what_room_there_is(source, tmp_path):
    rows = [{"instruction": "x" * length, "output": "1"} for length in (9, 400, 430)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = task_sections([tmp_path / "rows.jsonl"], [])
    together, alone = (
        evaluate(arrange([source], None), prepare_tasks(source, EvalRequest(tasks=sections))[0], size)
        for size in (4, 1)
    )
    assert together.scores["rows"]["base"].answers == alone.scores["rows"]["base"].answers


def test_a_reference_that_a_metric_cannot_compare_with_is_refused_with_its_line(source, tmp_path):
    rows = [{"instruction": "1+1", "output": "2"}, {"instruction": "1+2", "output": "three"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = task_sections([tmp_path / "rows.jsonl"], ["number_match"])
    tasks, _ = prepare_tasks(source, EvalRequest(tasks=sections))
    with pytest.raises(DataError, match="number_match: the reference holds no number") as caught:
        evaluate(arrange([source], None), tasks, 4)
    assert caught.value.problems[0].place.endswith("rows.jsonl:2")


def test_an_unknown_metric_is_refused():
    with pytest.raises(ArgumentError, match="exact_match, number_match"):
        task_sections([], ["accuracy"])


def test_with_nothing_to_measure_on_the_options_are_named(source):
    with pytest.raises(ArgumentError, match="--data FILE"):
        prepare_tasks(source, EvalRequest())


def test_the_options_of_the_command_reach_the_tasks(source, chat_data):
    request = EvalRequest(chat_data, task_sections([chat_data], ["contains"]), batch_size=3, max_new_tokens=5, limit=4)
    (held_out, sums, general), batch_size = prepare_tasks(source, request)
    assert (held_out.name, sums.name, general.name, batch_size) == ("held-out", "sums", "general text", 3)
    assert (list(sums.metrics), sums.max_new_tokens, sums.num_steps) == (["contains"], 5, 4)


def test_a_second_evaluation_of_what_was_kept_computes_nothing(source, request_, outcome, tmp_path, monkeypatch):
    tasks, batch_size = prepare_tasks(source, request_)
    with kept_in(tmp_path) as kept:
        evaluate(arrange([source], None), tasks, batch_size, kept)
    monkeypatch.setattr(held_out, "row_losses", None)
    monkeypatch.setattr(generation, "generate_answers", None)
    with kept_in(tmp_path) as kept:
        again = evaluate(arrange([source], None), prepare_tasks(source, request_)[0], batch_size, kept)
    assert again.as_dict() == outcome.as_dict()


def test_a_signal_says_how_much_is_kept_and_the_same_call_continues(source, request_, outcome, monkeypatch):
    real, calls = generation.generate_answers, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise Interruption(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(generation, "generate_answers", interrupted)
    with pytest.raises(StoppedBySignal, match="stopped by SIGTERM; 52 results are kept"):
        measure([source], request_)
    assert measure([source], request_).as_dict() == outcome.as_dict()
