"""What `qlora init` sees of the data, on the tiny base and on public layouts."""

from __future__ import annotations

import json

import pytest

from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import DataError
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.plan.first_look import NUM_ROWS, look_at
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.recipe.starter import Choice, StarterValues
from tests.data.read.public_layouts import UNNAMED


@pytest.fixture
def file_of(tmp_path):
    """Write rows to a file; returns its path."""

    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" if isinstance(row, dict) else f"{row}\n" for row in rows))
        return str(path)

    return write


def answers(num_chars, count=1):
    return [{"instruction": "count", "output": "x" * num_chars}] * count


def test_lengths_are_those_of_the_bases_tokenizer_and_template(chat_data, tiny_base):
    renderer = Renderer(load_tokenizer(ModelSection(base_model=str(tiny_base))))
    rows = renderer.render(read_examples(SourceSection(path=str(chat_data))))
    look = look_at(str(chat_data), str(tiny_base))
    assert look.lengths == sorted(len(row.input_ids) for row in rows)
    assert not look.is_estimate
    assert "the base has 512 positions" in look.notes[1]


def test_without_the_base_they_are_an_estimate_and_said_to_be_one(file_of):
    look = look_at(file_of(answers(395)), "Qwen/Qwen3-8B")
    assert look.lengths == [100]
    assert "estimated as characters / 4" in look.notes[1]


def test_columns_of_their_own_are_mapped_in_the_source_and_what_is_not_read_is_named(file_of, tiny_base):
    path = file_of(UNNAMED["lighteval/MATH"])
    look = look_at(path, str(tiny_base))
    assert look.laid_into(None).train.value == f"{{path: {path}, columns: {{instruction: problem, output: solution}}}}"
    assert look.notes[0].endswith("by {instruction: problem, output: solution}; not read: level, type")


@pytest.mark.parametrize(("longest", "max_length"), [(100, "2048"), (3000, "4096"), (30_000, "8192")])
def test_max_length_follows_the_longest_row_up_to_a_bound(file_of, longest, max_length):
    values = look_at(file_of(answers(4 * longest)), "Qwen/Qwen3-8B").laid_into(None)
    assert values.max_length.value == max_length
    assert (values.truncation is not None) == (longest > int(max_length))


def test_max_length_ends_at_the_positions_and_what_is_longer_is_dropped_in_writing(file_of, tiny_base):
    values = look_at(file_of([*answers(10, 3), *answers(2000)]), str(tiny_base)).laid_into(None)
    assert values.max_length.value == "512"
    assert values.truncation == Choice("drop", "1 of 4 rows looked at are longer than max_length")


def test_a_length_that_was_planned_for_a_card_stays(file_of, tiny_base):
    planned = StarterValues(max_length=Choice("64", "as planned"), planned="Planned.")
    values = look_at(file_of(answers(100)), str(tiny_base)).laid_into(planned)
    assert (values.max_length.value, values.planned) == ("64", "Planned.")
    assert values.truncation.value == "drop"


def test_only_the_first_rows_are_looked_at(file_of, tiny_base):
    look = look_at(file_of([*answers(3, NUM_ROWS), *answers(1000, 5)]), "Qwen/Qwen3-8B")
    assert len(look.lengths) == NUM_ROWS
    assert "of the first 1,000 rows" in look.notes[1]


def test_rows_that_cannot_be_read_are_counted_with_the_place_of_the_first(file_of, tiny_base):
    path = file_of([*answers(3, 2), "{", *answers(0)])
    look = look_at(path, str(tiny_base))
    assert len(look.lengths) == 2
    assert look.notes[2].startswith(f"2 of them cannot be read; the first: {path}:3")


@pytest.mark.parametrize("rows", [["{"], [{"x": 1.5}]])
def test_what_nobody_can_train_on_is_refused(file_of, tiny_base, rows):
    with pytest.raises(DataError):
        look_at(file_of(rows), str(tiny_base))
