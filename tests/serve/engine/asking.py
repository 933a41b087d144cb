"""Adapters on tiny bases, requests to an engine, and the same answers made alone."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import torch

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.model.base import load_base
from qlora_cli.model.tuned import TunedSource, find_tuned, load_tuned
from qlora_cli.serve.engine.loading import load_engine
from qlora_cli.serve.engine.requests import Finish, GenerationRequest, Piece
from qlora_cli.serve.generation import SamplingOptions, generate_answer
from qlora_cli.serve.speaker import load_speaker
from tests.deploy.models import save_tokenizer, with_adapter


def save_model(folder, model):
    torch.manual_seed(0)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


LOGPROB_BOUND = 1e-4
"""In float32, of the same token in a batch and alone."""


def find(folder: Path | str) -> TunedSource:
    """What is in a folder; gpt-oss has no sdpa."""
    source = find_tuned(Path(folder))
    if "gpt_oss" not in (Path(source.model.base_model) / "config.json").read_text():
        return source
    return dataclasses.replace(source, model=source.model.model_copy(update={"attn_implementation": "eager"}))


def save_adapter(folder: Path, base: Path, seed: int, **settings) -> Path:
    """An adapter as plain PEFT writes it, with updates large enough to change every answer."""
    tuned = with_adapter(load_base(find(base).model, None), **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    tuned.save_pretrained(folder)
    return folder


def question(number: int) -> list[dict[str, str]]:
    """A conversation; each has another length."""
    return [{"role": "user", "content": f"Count to {number}." + " please" * (3 * number % 11)}]


def request(loaded, model: str, number: int, **settings) -> GenerationRequest:
    """A request that wants log-probabilities."""
    asked = {"max_new_tokens": 24, "num_top_logprobs": 2} | settings
    return GenerationRequest(tuple(loaded.renderer.prompt_ids(question(number))), model, **asked)


@dataclasses.dataclass
class Heard:
    """All events of an answer."""

    pieces: list[Piece]
    finish: Finish

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self):
        return [token for piece in self.pieces for token in piece.tokens]

    @property
    def alternatives(self):
        return [some for piece in self.pieces for some in piece.alternatives]


def hear(ticket) -> Heard:
    *pieces, finish = ticket.events()
    assert isinstance(finish, Finish)
    return Heard(pieces, finish)


class Alone:
    """The same models, each loaded by itself, one question at a time; each question is answered once."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders
        self._loaded = {}
        self._answers = {}
        self._logprobs = {}

    def tuned(self, name: str):
        if name not in self._loaded:
            first = next(iter(self._folders.values()))
            source = find(self._folders.get(name, first))
            self._loaded[name] = load_speaker(source, is_base_wanted=True) if name == "base" else load_tuned(source)
        return self._loaded[name]

    def answer(self, name: str, number: int, **settings):
        options = SamplingOptions(**{"max_new_tokens": 24} | settings)
        asked = name, number, options
        if asked not in self._answers:
            tuned = self.tuned(name)
            renderer = Renderer(tuned.tokenizer)
            self._answers[asked] = generate_answer(tuned, renderer, question(number), options, lambda text: None)
        return self._answers[asked]

    def logprobs(self, name: str, prompt_ids, token_ids) -> torch.Tensor:
        """Of each token of an answer, from one pass over all of it: shape [tokens, vocabulary]."""
        asked = name, (*prompt_ids,), (*token_ids,)
        if asked not in self._logprobs:
            self._logprobs[asked] = self._pass(*asked)
        return self._logprobs[asked]

    @torch.no_grad()
    def _pass(self, name: str, prompt_ids, token_ids) -> torch.Tensor:
        ids = torch.tensor([[*prompt_ids, *token_ids]])
        logits = self.tuned(name).model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
        return logits[-len(token_ids) - 1 : -1].log_softmax(dim=-1)


def assert_as_alone(loaded, alone: Alone, asked: list[tuple[str, int, dict]], bound: float = LOGPROB_BOUND) -> None:
    """Ask everything at once; each answer is the one that its model gives alone, and so are its log-probabilities."""
    tickets = [loaded.engine.submit(request(loaded, name, number, **how)) for name, number, how in asked]
    for (name, number, how), ticket in zip(asked, tickets, strict=True):
        heard, expected = hear(ticket), alone.answer(name, number, **how)
        assert heard.finish.error == ""
        assert (name, number, heard.text) == (name, number, expected.text)
        assert heard.finish.num_new_tokens == expected.num_new_tokens
        assert heard.finish.reason == ("stop" if expected.stopped_by == "end_of_turn" else "length")
        ids = [token.token_id for token in heard.tokens]
        if not ids:
            continue
        own = torch.tensor([token.logprob for token in heard.tokens])
        reference = alone.logprobs(name, loaded.renderer.prompt_ids(question(number)), ids)
        assert (own - reference.gather(1, torch.tensor(ids)[:, None])[:, 0]).abs().max() < bound
        best = torch.tensor([[token.logprob for token in some] for some in heard.alternatives])
        assert (best - reference.topk(2).values).abs().max() < bound


@contextlib.contextmanager
def serving(folders, limits=None):
    loaded = load_engine([(name, find(folder)) for name, folder in folders.items()], limits)
    try:
        yield loaded
    finally:
        loaded.engine.close(0)


def mixed_load(names):
    """Twelve questions, greedy and sampled, for one name after the other."""
    sampled = {"temperature": 0.9, "top_p": 0.9}
    return [
        (names[number % len(names)], number, sampled | {"seed": number} if number % 3 == 2 else {})
        for number in range(12)
    ]
