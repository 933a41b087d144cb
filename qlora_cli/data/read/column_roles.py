"""Columns that may be the prompt, the answer, the conversation or the text: by their names, then by their contents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qlora_cli.data.read.column_profile import Column
from qlora_cli.data.read.converters import FORMATS

PROMPTS: tuple[str, ...] = (
    *("instruction", "question", "query", "prompt", "problem", "request", "task", "goal", "user", "human"),
    *("input", "inputs", "source", "src", "dialogue", "dialog", "conversation", "document", "article", "passage"),
    *("ctx", "context", "premise", "sentence", "text", "title"),
    *("指令", "问题", "输入", "frage", "pregunta"),
)
"""Names of prompts, the surest first."""

ANSWERS: tuple[str, ...] = (
    *("output", "outputs", "answer", "response", "completion", "reply", "solution", "target", "targets", "summary"),
    *("highlights", "chosen", "assistant", "bot", "gpt", "result", "translation", "sql", "code", "answers"),
    *("gold", "reference", "label", "abstract"),
    *("输出", "答案", "回答", "antwort", "respuesta"),
)
"""Names of answers, the surest first."""

CONTEXTS = ("input", "inputs", "context", "passage", "document", "article", "background", "schema", "support", "story")
"""Names of what a prompt is about."""

SYSTEMS = ("system_prompt", "system_message", "system_instruction")

TEXTS = ("text", "content", "body", "article", "document", "story", "raw_content", "code", "page_content", "chosen")
"""Names of running text."""

VALUES = ("text", "value", "output", "content")
"""Keys of the text in an answer that is an object."""

HALVES = ("instruction", "question", "answer", "answers")
"""Names of one half of an exchange, beside which no column is taken for running text."""


def candidates(columns: Sequence[Column], format: str | None) -> Iterator[dict[str, str]]:
    """Mappings of format fields to columns worth trying, the most likely first.

    Args:
        columns: of the source.
        format: the only one to look for; all where it is None. Of one that is not in `makers` nothing is proposed: its
            fields are read from the columns of their own names, or from those that the recipe maps.
    """
    makers = {
        "messages": _of_conversations,
        "sharegpt": _of_conversations,
        "alpaca": _of_pairs,
        "prompt_completion": _of_completions,
        "text": _of_texts,
    }
    for maker in dict.fromkeys(makers[name] for name in (makers if format is None else [format]) if name in makers):
        for candidate in maker(columns):
            if format is None or format_of(candidate) == format:
                yield candidate


def _of_conversations(columns: Sequence[Column]) -> Iterator[dict[str, str]]:
    """A column of whole conversations; of preference pairs the chosen one."""
    for kind, name in (("messages", "messages"), ("turns", "conversations")):
        found = [column.name for column in columns if column.kind == kind and not column.is_nested]
        found.sort(key=lambda column: (column != name, column != "chosen", "reject" in column.lower()))
        for column in found:
            yield {name: column}
            if column != "chosen" and any(other.name == "chosen" for other in columns):
                yield {name: column, "completion": "chosen"}


def _of_completions(columns: Sequence[Column]) -> Iterator[dict[str, str]]:
    """A prompt of messages, or of text that is continued as it is."""
    answers = [column for column in columns if column.name in ("chosen", "completion")]
    prompts = [column for column in columns if column.name == "prompt"]
    for answer in answers or _ranked(columns, ANSWERS):
        for prompt in prompts or _ranked(columns, PROMPTS):
            if prompt.name != answer.name:
                yield {"prompt": prompt.name, "completion": answer.name}


def _of_pairs(columns: Sequence[Column]) -> Iterator[dict[str, str]]:
    """A prompt and its answer as turns of the chat template, with what the prompt is about, and a system prompt."""
    if any(column.name == "prompt" and column.kind in ("text", "messages") for column in columns) and any(
        column.name in ("chosen", "completion") for column in columns
    ):
        yield from _of_completions(columns)
    answers, prompts = _ranked(columns, ANSWERS), _ranked(columns, PROMPTS)
    held = [column for column in columns if column.kind == "text" and not column.is_aside]
    texts = [column for column in held if not column.is_nested]
    if not prompts and len(texts) < (1 if answers else 2):
        texts = [column for column in held if column.is_nested]
    if not answers:
        if any(column.name.lower() in TEXTS for column in columns) or len(texts) < 2:
            return
        answers = texts[:0:-1]
    for answer in answers:
        others = [column for column in (*prompts, *texts) if column.name != answer.name]
        for prompt in dict.fromkeys(others):
            yield from _with_extras(columns, prompt, answer)


def _with_extras(columns: Sequence[Column], prompt: Column, answer: Column) -> Iterator[dict[str, str]]:
    pair = {"instruction": prompt.name, "output": answer.name}
    taken = {prompt.name, answer.name}
    free = [column for column in columns if column.kind == "text" and column.name not in taken]
    beside = answer.name.rpartition(".")[0]
    given = [
        column
        for column in _ranked(free, CONTEXTS)
        if not column.is_nested or (answer.is_nested and column.name.rpartition(".")[0] == beside)
    ]
    system = [column for column in free if column.name.lower() in SYSTEMS]
    extras = ({"input": given[0].name} if given else {}) | ({"system": system[0].name} if system else {})
    if extras:
        yield pair | extras
    yield pair


def _of_texts(columns: Sequence[Column]) -> Iterator[dict[str, str]]:
    """Running text: a column named so, or the longest."""
    if any(column.name in HALVES for column in columns):
        return
    texts = [column for column in columns if column.kind == "text" and not column.is_nested and not column.is_constant]
    named = [column for name in TEXTS for column in texts if column.name.lower() == name]
    longest = sorted((column for column in texts if not column.is_aside), key=lambda column: -column.mean_chars)
    for column in dict.fromkeys([*named, *longest]):
        yield {"text": column.name}


def _ranked(columns: Sequence[Column], names: Sequence[str]) -> list[Column]:
    """The columns whose names say that they are it: whole names, then parts of names, then what is inside.

    Text comes before numbers.
    """
    ranked = []
    for position, column in enumerate(columns):
        if column.kind not in ("text", "scalar", "messages"):
            continue
        ranks = [names.index(word) for word in (column.name.lower(), *column.words) if word in names]
        is_whole = column.name.lower() in names
        if ranks and (is_whole or column.is_nested or not column.is_aside):
            group = 0 if is_whole else 2 if column.is_nested else 1
            value = next((at for at, word in enumerate(VALUES) if word in column.words), len(VALUES))
            ranked.append(((group, column.kind == "scalar", min(ranks), value, position), column))
    return [column for _, column in sorted(ranked, key=lambda pair: pair[0])]


def format_of(columns: Mapping[str, str]) -> str:
    """The format whose fields a candidate maps.

    >>> format_of({"instruction": "question", "output": "answer"})
    'alpaca'
    """
    return next(name for name, layout in FORMATS.items() if set(layout.required) <= set(columns))
