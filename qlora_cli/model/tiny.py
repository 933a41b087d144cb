"""A small Llama-style base model made on the spot: no network, no download, minutes on a CPU.

It is a real base in every respect but its size: `AutoModelForCausalLM` and `AutoTokenizer` load it, its chat
template and end-of-turn token have been seen in training, and its text is not noise.
"""

# B = batch, L = sequence length

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.optimization import get_cosine_schedule_with_warmup

from qlora_cli.errors import ArgumentError
from qlora_cli.model.tiny_corpus import paragraphs, read_corpus
from qlora_cli.model.tiny_tokenizer import SMALLEST_VOCAB, train_tokenizer
from qlora_cli.run.staging import refuse_occupied, staged_folder

NF4_BLOCK = 64
OTHER_FOLDER = "name another folder"


@dataclass(frozen=True)
class TinyOptions:
    """Shape and training of a tiny base."""

    corpus: tuple[Path, ...] = ()
    """Text files (.txt, .md, .json, .jsonl); Python's own help pages when there are none."""

    hidden_size: int = 128
    """Width; a multiple of 64, so that every weight is whole NF4 blocks."""

    num_layers: int = 4
    num_heads: int = 4

    vocab_size: int = 2048
    """Most tokens the tokenizer may learn."""

    steps: int = 300
    """Optimizer steps; 0 leaves the weights random."""

    batch_size: int = 16
    """Windows a step."""

    window_length: int = 128
    """Tokens a window."""

    learning_rate: float = 3e-3
    seed: int = 42

    max_length: int = 1024
    """Longest context in tokens that the saved model declares."""


@dataclass(frozen=True)
class TinySummary:
    """Sizes and losses of the model that was made."""

    path: Path
    num_parameters: int
    vocab_size: int
    num_corpus_tokens: int
    first_loss: float | None
    """Cross-entropy per token of the first step, in nats; None with no steps."""

    last_loss: float | None
    """The same for the last step."""

    tokens_per_second: float | None

    def as_dict(self) -> dict[str, str | int | float | None]:
        """As JSON."""
        return {**asdict(self), "path": str(self.path)}


def make_tiny_base(
    out: Path, options: TinyOptions, on_step: Callable[[int, float], None] | None = None, *, force: bool = False
) -> TinySummary:
    """Make a tokenizer and a base model, train it on the corpus and save both under `out`.

    The same options give the same bytes on the same machine.

    Args:
        out: the folder to make; must not exist or be empty, unless `force` replaces a base that was made so.
        options: shape and training.
        on_step: called after each optimizer step with its number, from 1, and its loss.

    Raises:
        ArgumentError: if `out` is in use, a size does not fit, or the corpus is unreadable or too short.
    """
    refuse_occupied(out.resolve(), force=force, otherwise=OTHER_FOLDER)  # before minutes of training
    _check(options)
    documents = read_corpus(options.corpus)
    tokenizer = train_tokenizer(documents, options.vocab_size, options.max_length)
    token_ids = encode_corpus(documents, tokenizer)
    if len(token_ids) <= options.window_length:
        raise ArgumentError(
            f"the corpus has {len(token_ids)} tokens, fewer than one window of {options.window_length}",
            hint="give more text with --corpus",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = build_model(tokenizer, options)
        started = time.perf_counter()
        losses = train_on_windows(model, token_ids, options, on_step)
        seconds = time.perf_counter() - started
    with staged_folder(out, force=force, otherwise=OTHER_FOLDER) as folder:
        # Published bases come in bf16, so this one does too.
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    num_trained_tokens = options.steps * options.batch_size * options.window_length
    return TinySummary(
        path=out,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=len(tokenizer),
        num_corpus_tokens=len(token_ids),
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        tokens_per_second=num_trained_tokens / seconds if losses else None,
    )


def encode_corpus(documents: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Every document twice, end to end: as plain text, and as a conversation of its paragraphs.

    The conversation trains the tokens of the chat template, which no plain text holds.
    """
    token_ids: list[int] = []
    for document in documents:
        roles = ("user", "assistant")
        turns = [{"role": roles[index % 2], "content": text} for index, text in enumerate(paragraphs(document))]
        conversation = tokenizer.apply_chat_template(turns, tokenize=False)
        for text in (document, conversation):
            token_ids += [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    return torch.tensor(token_ids)


def build_model(tokenizer: PreTrainedTokenizerFast, options: TinyOptions) -> LlamaForCausalLM:
    """A Llama with random weights in fp32, from torch's current random state."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        # Llama's ratio of 8/3, rounded up to whole NF4 blocks.
        intermediate_size=-(-options.hidden_size * 8 // (3 * NF4_BLOCK)) * NF4_BLOCK,
        num_hidden_layers=options.num_layers,
        num_attention_heads=options.num_heads,
        max_position_embeddings=options.max_length,
        # Llama's 0.02 is made for widths of thousands. Here it would hold the logits, |w| * sqrt(width), near 2,
        # and no adapter that leaves the output head alone could make the model sure of a rare token.
        initializer_range=options.hidden_size**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train_on_windows(
    model: LlamaForCausalLM,
    token_ids: torch.Tensor,
    options: TinyOptions,
    on_step: Callable[[int, float], None] | None,
) -> list[float]:
    """AdamW with a cosine schedule on random windows of the corpus; the loss of each step, in nats per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, options.steps // 20), options.steps)
    losses: list[float] = []
    model.train()
    for step in range(1, options.steps + 1):
        starts_B = torch.randint(len(token_ids) - options.window_length, (options.batch_size,))
        windows_BL = token_ids[starts_B[:, None] + torch.arange(options.window_length)]
        loss = model(input_ids=windows_BL, labels=windows_BL, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if on_step is not None:
            on_step(step, losses[-1])
    model.eval()
    return losses


def _check(options: TinyOptions) -> None:
    if options.hidden_size % NF4_BLOCK or options.hidden_size <= 0:
        raise ArgumentError(
            f"--hidden is {options.hidden_size}, not a multiple of {NF4_BLOCK} (the NF4 block)",
            hint=f"try --hidden {max(1, round(options.hidden_size / NF4_BLOCK)) * NF4_BLOCK}",
        )
    if options.hidden_size % (2 * options.num_heads):
        raise ArgumentError(
            f"--heads is {options.num_heads}: --hidden {options.hidden_size} does not split into that many even parts",
            hint=f"try --heads {options.hidden_size // NF4_BLOCK}",
        )
    if options.vocab_size < SMALLEST_VOCAB:
        raise ArgumentError(
            f"--vocab is {options.vocab_size}; bytes and special tokens alone take {SMALLEST_VOCAB}",
            hint="try --vocab 2048",
        )
