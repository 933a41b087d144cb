"""Multiple choice: the choice whose text the model finds likeliest is its answer; nothing is generated.

The question is asked as a user's turn and each choice is an assistant's, rendered as in training. `acc` takes the
choice with the highest log-likelihood, `acc_norm` the one with the highest for each byte of its text, as lm-eval does:
a long choice is less likely for its length alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.collator import Collator
from qlora_cli.data.example import Conversation
from qlora_cli.data.packing import PackedRow
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import ArgumentError
from qlora_cli.evaluate.kept import Value
from qlora_cli.evaluate.scores import Measured, TaskScores, numbered
from qlora_cli.evaluate.tasks.choice_rows import ChoiceRow
from qlora_cli.evaluate.tasks.task import Subject, first_too_long
from qlora_cli.evaluate.work import Work
from qlora_cli.model.embedding_limits import num_positions
from qlora_cli.model.eval_loss import row_losses

RULES = {
    "acc": "1 if the right choice has the highest log-likelihood",
    "acc_norm": "1 if the right choice has the highest log-likelihood for each byte of its text",
}


@dataclass(frozen=True)
class _Candidate:
    """One choice of a question as tokens."""

    input_ids: list[int]
    labels: list[int]
    """Of the tokens of the choice's own text."""

    question: int
    num_bytes: int


class MultipleChoiceTask:
    """Questions with choices.

    Args:
        name: of the task.
        rows: its questions.
    """

    def __init__(self, name: str, rows: Sequence[ChoiceRow]) -> None:
        self.name = name
        self._questions = rows
        self._candidates: dict[str, list[_Candidate]] = {}

    @property
    def num_steps(self) -> int:
        """Choices."""
        return sum(len(row.choices) for row in self._questions)

    def check(self, subject: Subject) -> None:
        """Refuse questions that are longer than the model's context."""
        candidates = self._rendered(subject.renderer)
        index = first_too_long(subject, self.name, [one.input_ids for one in candidates])
        if index is not None:
            one, context = candidates[index], num_positions(subject.tuned.model.config)
            raise ArgumentError(
                f"question and choice have {len(one.input_ids)} tokens, the context of {subject.name} is {context}",
                place=str(self._questions[one.question].place),
                hint="shorten the question, or take the row out",
            )

    def run(self, subject: Subject, work: Work) -> TaskScores:
        """Log-likelihood of each choice, and which one is taken."""
        candidates = self._rendered(subject.renderer)
        collate = Collator(subject.tuned.tokenizer.pad_token_id)

        def compute(batch: Sequence[_Candidate]) -> list[Value]:
            packed = [asdict(PackedRow(one.input_ids, one.labels, [len(one.input_ids)])) for one in batch]
            return [{"nats": nats} for nats, _ in row_losses(subject.tuned.model, collate(packed))]

        values = work.batches(
            subject.key,
            ["choices"],
            candidates,
            lambda one: [one.input_ids, one.labels],
            compute,
            lambda one: len(one.input_ids),
        )
        likelihoods: list[list[tuple[float, float]]] = [[] for _ in self._questions]
        for one, value in zip(candidates, values, strict=True):
            likelihoods[one.question].append((-value["nats"], -value["nats"] / one.num_bytes))
        measures = {}
        for at, name in enumerate(RULES):
            right = [
                float(max(range(len(found)), key=lambda index: found[index][at]) == question.right)
                for question, found in zip(self._questions, likelihoods, strict=True)
            ]
            measures[name] = Measured(right, True, "share", "questions", rule=RULES[name])
        return TaskScores(numbered([str(row.place) for row in self._questions]), measures)

    def _rendered(self, renderer: Renderer) -> list[_Candidate]:
        if renderer.fingerprint not in self._candidates:
            self._candidates[renderer.fingerprint] = [
                one for number, row in enumerate(self._questions) for one in _candidates(row, number, renderer)
            ]
        return self._candidates[renderer.fingerprint]


def _candidates(row: ChoiceRow, number: int, renderer: Renderer) -> list[_Candidate]:
    """The choices of a question as rows whose labels are the tokens of the choice's own text.

    What a template prints before an answer is the same for all choices, and so is the end of the turn; both are left
    out, so that they do not weigh on `acc_norm`.
    """
    asked = {"role": "user", "content": row.question}
    rows = renderer.render(
        [Conversation([asked, {"role": "assistant", "content": choice}], None, row.place) for choice in row.choices]
    )
    has_lead = bool(renderer.answer_frame.lead)
    candidates = []
    for choice, rendered in zip(row.choices, rows, strict=True):
        trained = [at for at, label in enumerate(rendered.labels) if label != IGNORE_INDEX]
        end = next((at for at in trained if rendered.labels[at] in renderer.end_of_turn_ids), len(rendered.labels))
        kept = [at for at in trained if at < end]
        labels = [IGNORE_INDEX] * len(rendered.labels)
        for at in kept:
            labels[at] = rendered.labels[at]
        candidates.append(_Candidate(rendered.input_ids[:end], labels[:end], number, len(choice.encode())))
    return _without_shared_lead(candidates) if has_lead else candidates


def _without_shared_lead(candidates: list[_Candidate]) -> list[_Candidate]:
    """No label on the first tokens that all choices have in common."""
    shortest = min(len(one.labels) for one in candidates)
    shared = 0
    while shared < shortest - 1 and len({one.input_ids[shared] for one in candidates}) == 1:
        shared += 1
    return [
        _Candidate(one.input_ids, [IGNORE_INDEX] * shared + one.labels[shared:], one.question, one.num_bytes)
        for one in candidates
    ]
