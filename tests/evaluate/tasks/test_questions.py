import pytest

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Conversation, Place, PlainText
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import DataError
from qlora_cli.evaluate.tasks.questions import to_question

PLACE = Place("rows.jsonl", line=1, row=1)


@pytest.fixture(scope="module")
def renderer(tuned):
    return Renderer(tuned.tokenizer)


@pytest.mark.parametrize(
    "example",
    [
        Conversation(
            [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], tools=None, place=PLACE
        ),
        PlainText("2+2=", "4", PLACE),
    ],
)
def test_the_prompt_is_what_training_saw_before_the_answer(renderer, example):
    [row] = renderer.render([example])
    question = to_question(example, renderer)
    assert (
        question.prompt_ids
        == [token for token, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORE_INDEX][
            : len(question.prompt_ids)
        ]
    )
    assert row.labels[len(question.prompt_ids)] != IGNORE_INDEX
    assert (question.reference, question.place) == ("4", "rows.jsonl:1")


def test_only_the_last_assistant_turn_is_asked_for(renderer):
    words = ["hi", "hello", "bye", "see you"]
    roles = ["user", "assistant"] * 2
    turns = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
    question = to_question(Conversation(turns, None, PLACE), renderer)
    assert (question.prompt, question.reference) == ("bye", "see you")


@pytest.mark.parametrize(
    "example",
    [PlainText("", "running text", PLACE), Conversation([{"role": "user", "content": "hi"}], None, PLACE)],
)
def test_a_row_without_question_and_answer_is_refused_with_its_place(renderer, example):
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        to_question(example, renderer)
