"""From the data section to token rows: shares, weights, lengths, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.rendering import Renderer
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import DataSection

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


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
    return [row.place.line for row in rows]


def test_rows_of_all_sources_come_in_their_order(renderer, write):
    data = prepare(renderer, train=[write("a.jsonl", [1, 2]), write("b.jsonl", [3])])
    assert [str(row.place).rpartition("/")[2] for row in data.train] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]
    assert (data.num_rows_read, data.num_rows_dropped, data.eval) == (3, 0, [])


def test_counts_are_those_of_the_training_rows(renderer, write):
    data = prepare(renderer, train=write("a.jsonl", [1, 2]), eval=write("b.jsonl", [3]))
    assert data.num_tokens == sum(len(row.input_ids) for row in data.train)
    assert data.num_trained_tokens == sum(label != -100 for row in data.train for label in row.labels)
    assert data.trained_share == data.num_trained_tokens / data.num_tokens


@pytest.mark.parametrize(("weight", "num_rows"), [(2, 20), (0.5, 5), (2.3, 23)])
def test_a_weight_repeats_by_its_whole_part_and_samples_the_rest(weight, num_rows, renderer, write):
    data = prepare(renderer, train={"path": write("a.jsonl", range(10)), "weight": weight})
    times = Counter(lines(data.train)).values()
    assert len(data.train) == num_rows
    assert max(times) - min(times) <= 1


def test_a_sample_is_the_seeds(renderer, write):
    source = {"path": write("a.jsonl", range(40)), "weight": 0.5}
    first, again, other = (lines(prepare(renderer, seed, train=source).train) for seed in (1, 1, 2))
    assert first == again != other


def test_a_share_is_held_out_before_weights_so_that_no_row_is_on_both_sides(renderer, write):
    source = {"path": write("a.jsonl", [*range(20), *range(20)]), "weight": 2}
    data = prepare(renderer, train=source, eval_fraction=0.2)
    held_out = {tuple(row.input_ids) for row in data.eval}
    assert len(data.eval) == len(held_out) == 4
    assert len(data.train) == (40 - 8) * 2
    assert held_out.isdisjoint(tuple(row.input_ids) for row in data.train)


def test_eval_files_are_held_out_as_they_are(renderer, write):
    data = prepare(renderer, train=write("a.jsonl", [1, 2]), eval=write("b.jsonl", [3, 4]))
    assert (len(data.train), len(data.eval), data.num_rows_read) == (2, 2, 4)


def test_a_share_that_leaves_nothing_to_train_is_refused(renderer, write):
    with pytest.raises(DataError, match=r"eval_fraction 0\.9 leaves none of 1 different rows"):
        prepare(renderer, train=write("a.jsonl", [1]), eval_fraction=0.9)


def test_long_rows_are_refused_with_the_numbers_to_choose_by(renderer, write):
    path = write("a.jsonl", range(30))
    long = write("b.jsonl", [1, 2], length=60)
    with pytest.raises(DataError) as caught:
        prepare(renderer, train=[path, long], max_length=64)
    [problem] = caught.value.problems
    assert problem.place == f"{long}:1"
    assert problem.text.startswith("2 of 32 rows are longer than max_length 64 (longest ")
    longest = problem.text.partition("longest ")[2].partition(" ")[0]
    assert f"`data.max_length: {longest}`" in problem.hint
    assert "`data.truncation: drop`" in problem.hint


def test_long_rows_are_dropped_and_counted_where_told_to(renderer, write):
    sources = [write("a.jsonl", range(3)), write("b.jsonl", [1, 2], length=60)]
    data = prepare(renderer, train=sources, max_length=64, truncation="drop")
    assert (data.num_rows_read, data.num_rows_dropped, len(data.train)) == (5, 2, 3)


def test_a_recipe_of_long_rows_alone_is_refused(renderer, write):
    with pytest.raises(DataError, match=r"every row of data\.train is longer than max_length 64"):
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
    assert "1 of 3" in problem.hint


def test_a_template_that_does_not_end_the_turn_is_refused_with_the_way_out(tokenizer_for, write):
    endless = CHATML.replace("<|im_end|>", "")
    with pytest.raises(DataError, match=r"no end-of-turn token is trained in any of 2 rows") as caught:
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
