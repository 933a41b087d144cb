"""From the data section to token rows: shares, weights, lengths, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest

from qlora_cli.data.cache import clear, list_entries
from qlora_cli.data.check import check_data
from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import DataSection

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(scope="module")
def renderer(tokenizer_for):
    return Renderer(tokenizer_for(CHATML))


@pytest.fixture
def write(tmp_path):
    """Write rows of the alpaca format; the answer of row N is `answer N`."""

    def write_rows(name, numbers, length=1):
        rows = [{"instruction": "Count" * length, "output": f"answer {number}"} for number in numbers]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_rows


def prepare(renderer, seed=0, **section):
    return prepare_data(DataSection(**{"max_length": 256, **section}), renderer, seed)


def lines(rows):
    return [document.place.line for document in rows.all_documents()]


def refusal(renderer, **section):
    with pytest.raises(DataError) as caught:
        prepare(renderer, **section)
    return caught.value.problems[-1]


def test_rows_of_all_sources_come_in_their_order(renderer, write):
    data = prepare(renderer, train=[write("a.jsonl", [1, 2]), write("b.jsonl", [3])])
    places = [str(row.place).rpartition("/")[2] for row in data.train.all_documents()]
    assert places == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]
    assert (data.report.num_read, data.report.num_train, len(data.eval)) == (3, 3, 0)


def test_counts_are_those_of_the_training_rows(renderer, write):
    data = prepare(renderer, train=write("a.jsonl", [1, 2]), eval=write("b.jsonl", [3]))
    assert data.report.num_tokens == sum(len(row.input_ids) for row in data.train)
    assert data.report.num_trained_tokens == sum(label != -100 for row in data.train for label in row.labels)


@pytest.mark.parametrize(("weight", "num_rows"), [(2, 20), (0.5, 5), (2.3, 23)])
def test_a_weight_repeats_by_its_whole_part_and_samples_the_rest(weight, num_rows, renderer, write):
    data = prepare(renderer, train={"path": write("a.jsonl", range(10)), "weight": weight})
    times = Counter(lines(data.train)).values()
    assert data.report.num_train == num_rows
    assert max(times) - min(times) <= 1


def test_a_sample_is_the_seeds(renderer, write):
    source = {"path": write("a.jsonl", range(40)), "weight": 0.5}
    first, again, other = (lines(prepare(renderer, seed, train=source).train) for seed in (1, 1, 2))
    assert first == again != other


def test_a_share_is_held_out_before_weights_so_that_no_row_is_on_both_sides(renderer, write):
    source = {"path": write("a.jsonl", [*range(20), *range(20)]), "weight": 2}
    data = prepare(renderer, train=source, eval_fraction=0.2)
    held_out = {tuple(row.input_ids) for row in data.eval.all_documents()}
    assert data.report.num_eval == len(held_out) == 4
    assert data.report.num_train == (40 - 8) * 2
    [copies] = data.report.findings
    assert (copies.what, copies.verdict, copies.num_rows) == ("copy of a held-out row", "left out", 4)
    assert len(data.rejected_path.read_text().splitlines()) == 4
    assert held_out.isdisjoint(tuple(row.input_ids) for row in data.train.all_documents())


def test_eval_files_are_held_out_as_they_are(renderer, write):
    data = prepare(renderer, train=write("a.jsonl", [1, 2]), eval=write("b.jsonl", [3, 4]))
    assert (data.report.num_train, data.report.num_eval, data.report.num_read) == (2, 2, 4)


def test_a_share_that_leaves_nothing_to_train_is_refused(renderer, write):
    with pytest.raises(DataError, match=r"eval_fraction 0\.9 leaves none of 1 different rows"):
        prepare(renderer, train=write("a.jsonl", [1]), eval_fraction=0.9)


def test_long_rows_are_refused_with_the_numbers_to_choose_by(renderer, write):
    path = write("a.jsonl", range(30))
    long = write("b.jsonl", [1, 2], length=60)
    problem = refusal(renderer, train=[path, long], max_length=64)
    assert problem.place == f"{long}:1"
    assert problem.text.startswith("2 of 32 rows are longer than max_length 64 (longest ")
    longest = problem.text.partition("longest ")[2].partition(" ")[0]
    assert f"`data.max_length: {longest}`" in problem.hint
    assert "`data.truncation: drop`" in problem.hint


def test_long_rows_are_dropped_and_counted_where_told_to(renderer, write):
    sources = [write("a.jsonl", range(3)), write("b.jsonl", [1, 2], length=60)]
    data = prepare(renderer, train=sources, max_length=64, truncation="drop")
    assert (data.report.num_read, data.report.num_train) == (5, 3)
    [finding] = data.report.findings
    assert (finding.what, finding.verdict, finding.num_rows) == ("longer than max_length", "left out", 2)
    rejected = [json.loads(line) for line in data.rejected_path.read_text().splitlines()]
    assert [line["place"] for line in rejected] == [f"{sources[1]}:1", f"{sources[1]}:2"]
    assert rejected[0]["row"] == {"instruction": "Count" * 60, "output": "answer 1"}


def test_a_recipe_of_long_rows_alone_is_refused(renderer, write):
    with pytest.raises(DataError, match=r"no row of data\.train is left: of 2 rows read, 2 longer"):
        prepare(renderer, train=write("a.jsonl", [1, 2], length=60), max_length=64, truncation="drop")


def test_a_row_with_nothing_to_learn_is_refused_with_count_and_place(tokenizer_for, write):
    silent = CHATML.replace("m['content'] +", "(m['content'] if m['content'] != 'answer 2' else '') +")
    silent = silent.replace("{{ '<|im_start|>' +", "{% if m['content'] != 'answer 2' %}{{ '<|im_start|>' +")
    silent = silent.replace("}}{% endfor", "}}{% endif %}{% endfor")
    path = write("a.jsonl", [1, 2, 3])
    with pytest.raises(DataError) as caught:
        prepare(Renderer(tokenizer_for(silent)), train=path)
    [problem] = caught.value.problems
    assert problem.place == f"{path}:2"
    assert "nothing to learn" in problem.text


def test_a_template_that_does_not_end_the_turn_is_refused_with_the_way_out(tokenizer_for, write):
    endless = CHATML.replace("<|im_end|>", "")
    with pytest.raises(DataError, match=r"no end-of-turn token is trained in any row") as caught:
        prepare(Renderer(tokenizer_for(endless)), train=write("a.jsonl", [1, 2]))
    assert "{{ eos_token }}" in caught.value.problems[0].hint


def test_a_generation_block_that_leaves_the_end_of_turn_out_is_refused(tokenizer_for, write):
    masked_end = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif -%}
<|im_end|>{% endfor %}"""
    with pytest.raises(DataError, match="no end-of-turn token is trained"):
        prepare(Renderer(tokenizer_for(masked_end)), train=write("a.jsonl", [1, 2]))


def test_the_fingerprint_follows_tokens_labels_and_split(renderer, write):
    one, same = (prepare(renderer, train=write(name, [1, 2])) for name in ("a.jsonl", "b.jsonl"))
    other = prepare(renderer, train=write("c.jsonl", [1, 3]))
    split = prepare(renderer, train=write("d.jsonl", [1]), eval=write("e.jsonl", [2]))
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, other.fingerprint, split.fingerprint}) == 3


def test_what_was_made_once_is_found_again(renderer, write):
    first, again = (prepare(renderer, train=write("a.jsonl", [1, 2])) for _ in range(2))
    assert (first.is_cached, again.is_cached) == (False, True)
    assert first.fingerprint == again.fingerprint
    assert list(first.train) == list(again.train)
    assert first.report == again.report


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 255},
        {"packing": False},
        {"train_on": "all"},
        {"clean": {"strip": True}},
        {"eval_fraction": 0.5},
        {"truncation": "drop"},
    ],
)
def test_a_changed_setting_is_made_anew(change, renderer, write):
    path = write("a.jsonl", [1, 2, 3])
    prepare(renderer, train=path)
    assert not prepare(renderer, train=path, **change).is_cached


def test_a_changed_byte_seed_or_template_is_made_anew(renderer, tokenizer_for, write):
    path = write("a.jsonl", [1, 2])
    prepare(renderer, train=path)
    assert not prepare(renderer, seed=1, train=path).is_cached
    assert not prepare(Renderer(tokenizer_for(CHATML.replace("+ '<|im_end|>", "+ ' <|im_end|>"))), train=path).is_cached
    write("a.jsonl", [1, 3])
    assert not prepare(renderer, train=path).is_cached


def test_data_that_is_refused_leaves_nothing_in_the_cache(renderer, write):
    refusal(renderer, train=write("a.jsonl", [1, 2], length=60), max_length=64)
    assert list_entries() == []


def test_duplicates_are_taken_out_and_named(renderer, write):
    path = write("a.jsonl", [1, 2, 1, 1])
    data = prepare(renderer, train=path, clean={"dedupe": "exact"})
    assert lines(data.train) == [1, 2]
    rejected = [json.loads(line) for line in data.rejected_path.read_text().splitlines()]
    assert [(line["place"], line["text"]) for line in rejected] == [
        (f"{path}:3", f"repeats {path}:1"),
        (f"{path}:4", f"repeats {path}:1"),
    ]


def test_a_training_row_that_repeats_a_held_out_one_is_taken_out(renderer, write):
    train, held_out = write("a.jsonl", [1, 2, 3]), write("b.jsonl", [2])
    data = prepare(renderer, train=train, eval=held_out, clean={"dedupe": "exact"})
    assert (lines(data.train), lines(data.eval)) == ([1, 3], [1])


def test_a_required_column_that_no_row_has_is_a_mistake(renderer, write):
    problem = refusal(renderer, train=write("a.jsonl", [1, 2]), clean={"required": ["outptu"]})
    assert "every row lacks one of the columns of data.clean.required: outptu" in problem.text


def test_check_notes_duplicates_and_keeps_what_it_made(renderer, write):
    train, held_out = write("a.jsonl", [1, 2, 2, 3]), write("b.jsonl", [3, 4])
    section = DataSection.model_validate({"train": train, "eval": held_out, "max_length": 256})
    report = check_data(section, renderer, 0)
    assert report.is_trainable
    assert [(finding.what, finding.num_rows, finding.first) for finding in report.findings] == [
        ("exact duplicates in train", 1, f"{train}:3"),
        ("held-out rows with an exact duplicate in train", 1, f"{held_out}:1"),
    ]
    assert prepare_data(section, renderer, 0).is_cached


def test_check_reports_every_refused_row_by_cause(renderer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "Hi", "output": "Hello"}\n{"instruction": 1, "output": "x"}\nno\n')
    report = check_data(DataSection.model_validate({"train": str(path)}), renderer, 0)
    assert not report.is_trainable
    assert {(finding.what, finding.first) for finding in report.findings if finding.verdict == "refused"} == {
        ("not readable", f"{path}:3"),
        ("does not fit its format", f"{path}:2"),
    }


@pytest.mark.slow
def test_many_rows_over_processes_are_those_of_one_process(renderer, write, monkeypatch):
    path = write("a.jsonl", range(3000))
    monkeypatch.setattr("qlora_cli.data.workers.num_cores", lambda: 3)
    many = prepare(renderer, train=path)
    monkeypatch.setattr("qlora_cli.data.workers.num_cores", lambda: 1)
    clear()
    one = prepare(renderer, train=path)
    assert not one.is_cached
    assert one.fingerprint == many.fingerprint
    assert dataclasses.replace(one.report, seconds=0) == dataclasses.replace(many.report, seconds=0)
