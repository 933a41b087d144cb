"""Questions whose answers are generated and held against a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qlora_cli.data.example import Example
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.render.answer_frame import AnswerFrame
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.evaluate.answers import AnswerOptions, Generated, generate_answers
from qlora_cli.evaluate.kept import Value
from qlora_cli.evaluate.metrics.metric import Metric
from qlora_cli.evaluate.scored_part import ScoredPart
from qlora_cli.evaluate.scores import AnswerText, Measured, TaskScores, numbered
from qlora_cli.evaluate.tasks.questions import Question, to_question
from qlora_cli.evaluate.tasks.task import Subject, first_too_long
from qlora_cli.evaluate.work import Work
from qlora_cli.model.embedding_limits import num_positions


class GenerationTask:
    """Prompts with references.

    Args:
        name: of the task.
        examples: conversations or texts; of each the last answer is asked for.
        metrics: how answers are scored, by name.
        max_new_tokens: longest answer.
    """

    def __init__(
        self, name: str, examples: Sequence[Example], metrics: Mapping[str, Metric], max_new_tokens: int = 256
    ) -> None:
        self.name = name
        self.metrics = dict(metrics)
        self.max_new_tokens = max_new_tokens
        self._examples = examples
        self._questions: dict[str, list[Question]] = {}

    @property
    def num_steps(self) -> int:
        """Questions."""
        return len(self._examples)

    def questions(self, renderer: Renderer) -> list[Question]:
        """The questions in a model's tokens; made once for all models with the same tokenizer and template.

        Raises:
            DataError: every row that is no question, or that a metric can compare nothing with (the first 20 in full).
        """
        if renderer.fingerprint not in self._questions:
            problems = RowProblems()
            questions = []
            for example in self._examples:
                try:
                    question = to_question(example, renderer)
                    self._check_reference(question)
                    questions.append(question)
                except DataError as error:
                    problems.add_error(error)
            problems.raise_if_any()
            self._questions[renderer.fingerprint] = questions
        return self._questions[renderer.fingerprint]

    def _check_reference(self, question: Question) -> None:
        for name, metric in self.metrics.items():
            fault = metric.fault(question.reference)
            if fault is not None:
                raise DataError(
                    f"{name}: the reference {fault}",
                    place=question.place,
                    hint=f"correct the row, or score '{self.name}' by another metric",
                )

    def check(self, subject: Subject) -> None:
        """Refuse prompts that fill the model's context, and those it has no embeddings for."""
        questions = self.questions(subject.renderer)
        index = first_too_long(subject, self.name, [question.prompt_ids for question in questions], room=1)
        if index is not None:
            context, num_tokens = num_positions(subject.tuned.model.config), len(questions[index].prompt_ids)
            raise ArgumentError(
                f"the prompt has {num_tokens} tokens and the context of {subject.name} is {context}",
                place=questions[index].place,
                hint="shorten the prompt, or take the row out",
            )

    def run(self, subject: Subject, work: Work) -> TaskScores:
        """The answer to each question, and its scores."""
        questions = self.questions(subject.renderer)
        generated = self._generated(subject, questions, work)
        frame = subject.renderer.answer_frame
        parts = {
            is_chat: ScoredPart(subject.tuned.tokenizer, frame if is_chat else AnswerFrame())
            for is_chat in (True, False)
        }
        answers = [
            parts[question.is_chat].of(one.token_ids, is_ended=one.is_ended)
            for question, one in zip(questions, generated, strict=True)
        ]
        references = [parts[question.is_chat].of_reference(question.reference) for question in questions]
        rule = parts[any(question.is_chat for question in questions)].rule
        return TaskScores(
            numbered([question.place for question in questions]),
            measures_of(self.metrics, answers, references, rule),
            answers=answers,
            rows=[{"prompt": question.prompt, "reference": question.reference} for question in questions],
            max_new_tokens=self.max_new_tokens,
        )

    def _generated(self, subject: Subject, questions: Sequence[Question], work: Work) -> list[Generated]:
        tuned, end_ids = subject.tuned, subject.renderer.end_of_turn_ids
        context = num_positions(tuned.model.config)

        def longest_answer(question: Question) -> int:
            room = self.max_new_tokens if context is None else context - len(question.prompt_ids)
            return min(self.max_new_tokens, room)

        def compute(batch: Sequence[Question]) -> list[Value]:
            options = AnswerOptions(
                end_ids, tuned.tokenizer.pad_token_id, max_new_tokens=min(map(longest_answer, batch))
            )
            found = generate_answers(tuned.model, [question.prompt_ids for question in batch], options)
            return [{"ids": one.token_ids, "ended": one.is_ended} for one in found]

        settings = ["answers", self.max_new_tokens, sorted(end_ids)]
        values = work.batches(
            subject.key,
            settings,
            questions,
            lambda question: question.prompt_ids,
            compute,
            lambda question: len(question.prompt_ids),
            together=longest_answer,
        )
        return [Generated(value["ids"], value["ended"]) for value in values]


def measures_of(
    metrics: Mapping[str, Metric], answers: Sequence[AnswerText], references: Sequence[str], rule: str | None
) -> dict[str, Measured]:
    """The scores of all answers under each metric; without an answer the score is 0.

    A metric of a corpus (BLEU, chrF) has a figure over all answers, and the mean over single ones, which is compared.
    """
    measures: dict[str, Measured] = {}
    texts = [answer.scored or "" for answer in answers]
    for name, metric in metrics.items():
        scores = [
            0.0 if answer.scored is None else metric.score(answer.scored, reference)
            for answer, reference in zip(answers, references, strict=True)
        ]
        told = "; ".join(filter(None, (metric.rule, rule)))
        mean = Measured(scores, True, metric.unit, "questions", rule=told)
        if metric.corpus is None:
            measures[name] = mean
            continue
        together = replace(mean, rule=f"{told}, of all answers together", is_judged=False)
        measures[name] = replace(together, total=metric.corpus(texts, references))
        measures[f"sentence_{name}"] = replace(mean, rule=f"{told}, mean over single answers")
    return measures
