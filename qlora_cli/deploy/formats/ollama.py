"""ollama: a GGUF file and the Modelfile that `ollama create` reads, with the chat template where it can be proved.

ollama does not run Jinja. Where the template of training is a plain string of turns, each with something before and
after its text, the same is written in Go's text/template, and held against the template of training on conversations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qlora_cli import console
from qlora_cli.data.example import Message
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.deploy.formats import gguf
from qlora_cli.deploy.formats.format import WriteJob

MODELFILE = "Modelfile"
ROLES = ("system", "user", "assistant")

Render = Callable[[Sequence[Message], bool], str]
"""Text of a conversation, with or without what begins the next answer."""


@dataclass(frozen=True)
class PlainTemplate:
    """A template that puts the same words around each text of a role."""

    beginning: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    answer: str
    """What begins the next answer."""

    def text(self, messages: Sequence[Message], is_asked: bool) -> str:
        """As the template prints a conversation.

        >>> words = {"user": "U: "}, {"user": "\\n"}
        >>> PlainTemplate("<s>", *words, "A: ").text([{"role": "user", "content": "Hi"}], True)
        '<s>U: Hi\\nA: '
        """
        turns = [self.before[one["role"]] + str(one["content"]) + self.after[one["role"]] for one in messages]
        return self.beginning + "".join(turns) + (self.answer if is_asked else "")

    def in_go(self) -> str:
        """The same in Go's text/template, as ollama fills it in; it adds the beginning itself."""
        cases = [
            f'{{{{ {"else " if role != ROLES[0] else ""}if eq .Role "{role}" }}}}{_go(self.before[role])}'
            f"{{{{ .Content }}}}{_go(self.after[role])}"
            for role in ROLES
        ]
        return f"{{{{- range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{_go(self.answer)}"


def plain_template(render: Render) -> PlainTemplate | None:
    """The plain form of a template; None where it does more than put words around texts."""
    roles = ("user", "assistant", "user", "system")
    user, answer, second, system = ({"role": role, "content": f"Q{at}Q"} for at, role in enumerate(roles))
    try:
        opening, after_user = render([user], False).split(user["content"])
        _, between, after_answer = _around(render([user, answer], False), user, answer)
        to_second = _around(render([user, answer, second], False), answer, second)[1]
        before_system, to_user, _ = _around(render([system, user], False), system, user)
    except (ValueError, TemplateError):
        return None
    before_user = to_second.removeprefix(after_answer)
    beginning = opening.removesuffix(before_user)
    found = PlainTemplate(
        beginning,
        {
            "system": before_system.removeprefix(beginning),
            "user": before_user,
            "assistant": between.removeprefix(after_user),
        },
        {"system": to_user.removesuffix(before_user), "user": after_user, "assistant": after_answer},
        render([user], True).removeprefix(render([user], False)),
    )
    try:
        is_proved = all(found.text(*one) == render(*one) for one in CONVERSATIONS)
    except TemplateError:
        return None
    return found if is_proved else None


def _around(text: str, first: Message, second: Message) -> tuple[str, str, str]:
    before, rest = text.split(str(first["content"]))
    between, after = rest.split(str(second["content"]))
    return before, between, after


def _conversations() -> list[tuple[list[Message], bool]]:
    """Twenty conversations, with and without a system prompt, whose texts have edges that templates like to trim."""
    texts = (
        "Hi",
        " two  spaces ",
        "line\n\nline\n",
        "<b>&amp; {{ x }}",
        "Größe 東京 🚀",
        "`code`\t",
        "A: \"quoted\" 'text'",
    )
    found: list[tuple[list[Message], bool]] = []
    for number in range(20):
        roles = [*(["system"] if number % 2 else []), *["user", "assistant"] * (number // 4), "user"]
        messages = [{"role": role, "content": texts[(number + at) % len(texts)]} for at, role in enumerate(roles)]
        found.append((messages, number % 3 != 0))
    return found


CONVERSATIONS = _conversations()


def _go(text: str) -> str:
    """A text that Go's text/template prints as it is."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def modelfile(file: str, tokenizer: PreTrainedTokenizerBase, context: int | None) -> str:
    """The text of a Modelfile.

    Args:
        file: name of the GGUF file beside it.
        tokenizer: with the chat template of training.
        context: tokens that the model was made for.
    """
    renderer = Renderer(tokenizer)

    def render(messages: Sequence[Message], is_asked: bool) -> str:
        text = tokenizer.apply_chat_template(
            list(messages), chat_template=renderer.template, add_generation_prompt=is_asked, tokenize=False
        )
        return str(text)

    lines = [f"FROM ./{file}"]
    template = plain_template(render)
    # llama.cpp begins each text with the token that begins one; other words there are nobody's turn.
    if template is None or template.beginning not in ("", tokenizer.bos_token):
        console.warn("this chat template cannot be proved in ollama's words: the Modelfile has no TEMPLATE")
        console.note("ollama then looks for a template of its own; compare its answers with `qlora chat`")
    else:
        lines.append(f'TEMPLATE """{template.in_go()}"""')
    stops = [str(tokenizer.decode([one])) for one in sorted(renderer.end_of_turn_ids)]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += [f"PARAMETER num_ctx {context}"] if context is not None else []
    return "\n".join([*lines, "PARAMETER temperature 0.7", "PARAMETER top_p 1", "PARAMETER repeat_penalty 1", ""])


def write(job: WriteJob) -> None:
    """Write the GGUF file and its Modelfile.

    Raises:
        ArgumentError, ResourceError: as `gguf.write`.
    """
    gguf.write(job)
    _write_modelfile(job)


def write_codes(job: WriteJob) -> None:
    """The same of a model in integers."""
    gguf.write_codes(job)
    _write_modelfile(job)


def _write_modelfile(job: WriteJob) -> None:
    [file] = job.out.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(job.plain, trust_remote_code=job.source.model.trust_remote_code)
    context = json.loads((job.plain / "config.json").read_text("utf-8")).get("max_position_embeddings")
    (job.out / MODELFILE).write_text(modelfile(file.name, tokenizer, context), encoding="utf-8")


FORMAT = replace(gguf.GGUF_FILE, write=write, codes=replace(gguf.OF_INTEGERS, write=write_codes))
