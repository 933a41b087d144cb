import json

import pytest

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Conversation, Place, PlainText
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.evaluate.request import EvalRequest, prepare_evaluation, task_sections
from qlora_cli.evaluate.tasks import Question, Task, load_task, score_answers, to_question
from qlora_cli.recipe.eval_schema import TaskSection

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
    assert question.reference == "4"


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


def test_columns_name_and_limit_of_the_recipe_are_used(renderer, tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"ask": f"{n}?", "say": str(n)}) + "\n" for n in range(5)))
    columns = {"instruction": "ask", "output": "say"}
    task = load_task(TaskSection(path=str(file), name="named", columns=columns, limit=2), renderer)
    assert (task.name, [question.reference for question in task.questions]) == ("named", ["0", "1"])


def test_scores_are_means_over_the_questions():
    questions = [Question("", [1], reference) for reference in ("a", "b", "c", "d")]
    task = Task("letters", questions, ("exact_match", "contains"), 8)
    assert score_answers(["a", "b", "see", "x"], task) == {"exact_match": 0.5, "contains": 0.5}


def test_an_unknown_metric_is_refused():
    with pytest.raises(ArgumentError, match="exact_match, number_match"):
        task_sections([], ["accuracy"])


def test_with_nothing_to_measure_on_the_options_are_named(tuned):
    with pytest.raises(ArgumentError, match="--data FILE"):
        prepare_evaluation(tuned, EvalRequest())


def test_the_options_of_the_command_reach_the_evaluation(tuned, chat_data):
    sections = task_sections([chat_data], ["contains"])
    request = EvalRequest(chat_data, sections, batch_size=3, max_new_tokens=5, limit=4)
    evaluation = prepare_evaluation(tuned, request)
    [task] = evaluation.tasks
    assert (len(evaluation.rows), evaluation.batch_size) == (48, 3)
    assert (task.metrics, task.max_new_tokens, len(task.questions)) == (("contains",), 5, 4)
