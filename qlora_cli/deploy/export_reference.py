"""What an exported model is held against: base and adapter as they were trained, and the base alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from qlora_cli import console
from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.deploy.base_logits import base_logits
from qlora_cli.deploy.engines.engine import Questions
from qlora_cli.deploy.greedy import greedy_answers
from qlora_cli.deploy.verification_rows import FIXED_QUESTIONS, NUM_ROWS, own_rows, probe_rows, rows_of
from qlora_cli.deploy.verify import record_logits
from qlora_cli.errors import DataError, IdentityError
from qlora_cli.model.device import precision_of
from qlora_cli.model.tuned import TunedSource, load_tuned
from qlora_cli.recipe.schema import Recipe

PROOF_MESSAGES = [{"role": "user", "content": "Name three primary colours."}]

NUM_CALIBRATION_ROWS = 64
"""Rows that statistics of activations come from: up to 32,768 tokens."""


@dataclass(frozen=True)
class Reference:
    """What base and adapter say, before anything is exported."""

    questions: Questions
    logits: list[torch.Tensor]
    """float32 [L, V] a row, with the adapter."""

    base_logits: list[torch.Tensor]
    """The same of the base alone."""

    texts: list[list[int]]
    """The most likely answers to the prompts."""

    precision: str
    calibration_rows: list[list[int]]
    proof_prompt: str
    """What training made of PROOF_MESSAGES."""


def record_reference(source: TunedSource, *, needs_base: bool) -> Reference:
    """Ask base and adapter; the model is released on return.

    Args:
        source: a run or an adapter.
        needs_base: also ask the base alone, as the yardstick of a format that rounds.
    """
    tuned = load_tuned(source)
    renderer = Renderer(tuned.tokenizer)
    rows = probe_rows(source.recipe, renderer)
    ends = frozenset({*renderer.end_of_turn_ids, tuned.tokenizer.eos_token_id})
    questions = Questions(
        rows, _prompts(source.recipe, renderer), ends, trust_remote_code=source.model.trust_remote_code
    )
    proof_prompt = tuned.tokenizer.apply_chat_template(
        PROOF_MESSAGES, chat_template=renderer.template, add_generation_prompt=True, tokenize=False
    )
    return Reference(
        questions,
        record_logits(tuned.model, rows),
        base_logits(tuned, rows) if needs_base else [],
        greedy_answers(tuned.model, questions),
        precision_of(tuned.model),
        _calibration_rows(source.recipe, renderer, rows),
        proof_prompt,
    )


def _prompts(recipe: Recipe | None, renderer: Renderer) -> list[list[int]]:
    """What comes before the first trained token of the run's held-out rows; else the fixed questions."""
    try:
        rows = own_rows(recipe, renderer, NUM_ROWS)
    except DataError:
        rows = []  # `probe_rows` has said so
    prompts = []
    for row in rows:
        labels = list(row.labels)
        start = next((index for index, label in enumerate(labels) if label != IGNORE_INDEX), 0)
        if start:
            prompts.append(list(row.input_ids[:start]))
    return prompts or [renderer.prompt_ids([{"role": "user", "content": question}]) for question in FIXED_QUESTIONS]


def _calibration_rows(recipe: Recipe | None, renderer: Renderer, otherwise: list[list[int]]) -> list[list[int]]:
    """Rows that the adapter was trained on; not the held-out ones that the result is measured on."""
    if recipe is None:
        return otherwise
    try:
        rows = rows_of(recipe.data.train[0], renderer, NUM_CALIBRATION_ROWS)
    except DataError as fault:
        console.note(f"the training data cannot be read any more: {fault.problems[0].text}")
        return otherwise
    return [list(row.input_ids) for row in rows]


def refuse_other_prompt(folder: Path, reference: Reference, *, trust_code: bool) -> None:
    """Refuse a merged model whose chat template makes another prompt than training saw.

    Raises:
        IdentityError: with both prompts.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_code)
    prompt = tokenizer.apply_chat_template(PROOF_MESSAGES, add_generation_prompt=True, tokenize=False)
    if prompt != reference.proof_prompt:
        raise IdentityError(
            f"the exported tokenizer renders another prompt than training saw: {prompt!r}, "
            f"not {reference.proof_prompt!r}",
            hint="merge again with `qlora merge --force`, then export",
        )


def cut_alike(
    logits: Sequence[torch.Tensor], other: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Both without the columns that only one of them has: rows that fill a vocabulary up have no token.

    >>> left, right = cut_alike([torch.zeros(1, 3)], [torch.zeros(1, 4)])
    >>> left[0].shape, right[0].shape
    (torch.Size([1, 3]), torch.Size([1, 3]))
    """
    width = min(part.shape[-1] for part in (*logits, *other))
    return [part[..., :width] for part in logits], [part[..., :width] for part in other]
