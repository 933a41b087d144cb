"""The model card of what is pushed: made of what was recorded and measured, and of nothing else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import yaml_dump

from qlora_cli.deploy.push.base import last_name
from qlora_cli.deploy.push.files import is_path, without_paths
from qlora_cli.deploy.push.folder import PushedFolder
from qlora_cli.deploy.push.head import head
from qlora_cli.hub import HUB_FILES
from qlora_cli.recipe.local_checks import is_on_hub
from qlora_cli.recipe.yaml_text import parse_yaml
from qlora_cli.report.curve import is_number
from qlora_cli.report.measures_part import measured, objects
from qlora_cli.report.record import RunRecord
from qlora_cli.report.setup_part import duration, method
from qlora_cli.secrets import redacted
from qlora_cli.web_page import text_as_html

KINDS = {
    "adapter": "An adapter",
    "model": "A merged model",
    "gguf": "A model in GGUF files",
    "mlx": "A model in MLX's format",
}
MARK = re.compile(r"<!-- card by qlora push, ([0-9a-f]{64}) -->\n?")
"""Last line of a card, with the SHA-256 of all before it: a card that was edited since no longer has its own."""

NEEDED = "[More Information Needed]"
OF_PEFT = re.compile(r"### Framework versions|- PEFT \d[\w.]*")
"""Lines that PEFT adds to the template of huggingface_hub."""


def model_card(folder: PushedFolder, repo: str) -> str:
    """The card as it is uploaded, with its mark."""
    title = last_name(repo)
    sections = (
        _what(folder),
        _data(folder.run),
        _measured(folder.run),
        _agreement(folder.merge),
        _training(folder.run),
        _use(folder),
        _recipe(folder.run),
    )
    body = "\n".join((f"# {_cell(title)}\n", *(section for section in sections if section)))
    text = redacted(f"{head(folder, title)}\n{body}\n")
    return f"{text}<!-- card by qlora push, {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_replaceable(card: str) -> bool:
    """Whether nobody has written a word of a card: it is as `model_card` made it, or a template of blanks."""
    text = card.replace("\r\n", "\n")
    if found := MARK.search(text):
        whole = found.end() == len(text)
        return whole and hashlib.sha256(text[: found.start()].encode()).hexdigest() == found[1]
    lines = _written_lines(text)
    return NEEDED in lines and all(line in _template() or OF_PEFT.fullmatch(line) for line in lines)


@cache
def _template() -> frozenset[str]:
    """Lines of the template of blanks that PEFT and transformers write beside weights."""
    return frozenset(_written_lines(ModelCard.from_template(ModelCardData()).content))


def _written_lines(card: str) -> list[str]:
    """The lines of a card that are neither its head nor a comment nor empty."""
    body = re.sub(r"<!--.*?-->", "", re.sub(r"\A---\n.*?\n?---\n", "", card, flags=re.DOTALL), flags=re.DOTALL)
    return [line.strip() for line in body.splitlines() if line.strip()]


def _what(folder: PushedFolder) -> str:
    how = method(folder.run) if folder.run is not None else ""
    kind = KINDS[folder.kind] + (f" (`{folder.export_format}`)" if folder.export_format else "")
    lines = [f"{kind}, made with qlora." if not how else f"{kind}: {how}."]
    if folder.base is not None:
        base = folder.base
        name = (
            f"[{base.name}](https://huggingface.co/{base.hub_id})" if base.hub_id else f"`{base.name}` (a local folder)"
        )
        facts = {"base model": name, "revision": base.revision or "not recorded", "licence of the base": base.licence}
        if folder.merge.get("onto"):
            weights = f"the {folder.merge['onto']} base" if folder.merge.get("quantization") else "the base as it is"
            facts["merged onto"] = f"{weights}, in {folder.merge.get('dtype')}"
        lines.append(_facts(facts))
    return "\n\n".join(lines) + "\n"


def _data(run: RunRecord | None) -> str:
    """Names and numbers of rows, never a row."""
    if run is None or not run.data_report:
        return ""
    report = run.data_report
    rows = [
        (
            _name(source.get("path")),
            str(source.get("part")),
            _count(source.get("num_read")),
            _count(source.get("num_rows")),
        )
        for source in objects(report.get("sources"))
    ]
    facts = {
        "training rows": _count(report.get("num_train")),
        "held-out rows": _count(report.get("num_eval")),
        "tokens of the training rows": _count(report.get("num_tokens")),
        "of them trained": _count(report.get("num_trained_tokens")),
    }
    table = _table(("source", "part", "rows read", "rows of an epoch"), rows)
    return f"## Data\n\n{table}\n\n{_facts(facts)}\n"


def _measured(run: RunRecord | None) -> str:
    """Figures of `qlora eval`: each measure of each model, and the verdicts as they were worded."""
    if run is None or not run.results:
        return "## Evaluation\n\nNot measured.\n"
    models = objects(run.results.get("models"))
    names = [str(model.get("name")) for model in models]
    rows = []
    for measure in objects(run.results.get("measures")):
        values = measure.get("values")
        values = values if isinstance(values, dict) else {}
        source = f" · {_name(measure['source'])}" if measure.get("source") else ""
        label = f"{_name(measure.get('task'))} · {measure.get('measure')}{source}"
        rows.append((label, *(_figure(values.get(name), measure.get("unit")) for name in names)))
    verdicts = [
        f"- {_cell(_name(one.get('task')))}, {_cell(one.get('measure'))}, {_cell(_name(one.get('model')))} against "
        f"{_cell(_name(one.get('against')))}: {_cell(one.get('sentence'))}"
        for one in objects(run.results.get("verdicts"))
    ]
    computed = "; ".join(f"{_name(model.get('name'))} in {model.get('computed_in')}" for model in models)
    parts = (
        _table(("measure", *map(_name, names)), rows),
        f"Intervals are 95%. Measured with the adapter on its base: {_cell(computed)}.",
        "\n".join(verdicts),
    )
    return "## Evaluation\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _figure(value: Any, unit: Any) -> str:
    if not isinstance(value, dict) or not is_number(value.get("value")):
        return "not measured"
    told = measured(value["value"], unit)
    if is_number(value.get("low")) and is_number(value.get("high")):
        return f"{told} ({measured(value['low'], unit)} to {measured(value['high'], unit)})"
    return told


def _agreement(merge: Mapping[str, Any]) -> str:
    """What merge and export measured against base and adapter."""
    export = merge.get("export")
    found = {"merged weights": merge.get("agreement")}
    if isinstance(export, dict):
        found["this folder, loaded"] = export.get("agreement")
    rows = [
        (label, f"{one['mean_kl']:.3g}", f"{one['top1_agreement']:.2%}")
        for label, one in found.items()
        if isinstance(one, dict) and is_number(one.get("mean_kl")) and is_number(one.get("top1_agreement"))
    ]
    if not rows:
        return ""
    table = _table(("against base and adapter", "mean KL, nats a token", "top-1 agreement"), rows)
    return f"## Agreement with what was trained\n\n{table}\n"


def _training(run: RunRecord | None) -> str:
    if run is None:
        return ""
    facts = {"steps": f"{run.num_steps:,}" + (f" of {run.max_steps:,}" if run.max_steps else "")}
    if is_number(run.manifest.get("adapter_step")):
        facts["adapter of step"] = _count(run.manifest["adapter_step"])
    facts["last training loss"] = _last(run.lines, "loss")
    facts["last held-out loss"] = _last(run.lines, "eval_loss")
    facts["time"] = duration(run) or "not recorded"
    facts |= {name.replace("_", " "): str(value) for name, value in run.section("hardware").items()}
    facts |= {name: str(run.manifest[name]) for name in ("dtype", "seed") if name in run.manifest}
    facts["versions"] = (
        ", ".join(f"{name} {value}" for name, value in run.section("versions").items()) or "not recorded"
    )
    return f"## Training\n\n{_facts(facts)}\n"


def _last(lines: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [line[key] for line in lines if is_number(line.get(key))]
    return f"{values[-1]:.4f}" if values else "not recorded"


def _use(folder: PushedFolder) -> str:
    known = "the sources and measures above" if folder.run is not None else "what is said above"
    return (
        "## Intended use\n\n"
        "Whoever published this model has not said yet what it is meant for. "
        f"What is known of it is {known}; other uses were not tested.\n"
    )


def _recipe(run: RunRecord | None) -> str:
    """The recipe as it was resolved, with names for paths."""
    root = parse_yaml(run.recipe_text, "recipe.yaml").root if run is not None and run.recipe_text else None
    plain = None if root is None else root.plain()
    if not isinstance(plain, dict):
        return ""
    text = yaml_dump(_named(without_paths(plain, None)), sort_keys=False)
    return f"<details><summary>The recipe as it was resolved</summary>\n\n```yaml\n{text}```\n\n</details>\n"


def _named(value: Any) -> Any:
    """`value` with the last name of each path that starts at the root, the home or above the working directory."""
    if isinstance(value, dict):
        return {key: _named(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_named(one) for one in value]
    return last_name(value) if isinstance(value, str) and is_path(value) else value


def _name(value: Any) -> str:
    """Name of a source, a task or a model; of a path its last part. Ids of the Hub stay."""
    text = str(value)
    is_elsewhere = "://" in text and not text.startswith(HUB_FILES)
    return text if is_on_hub(text) and not is_elsewhere else last_name(text)


def _count(value: Any) -> str:
    return f"{value:,}" if is_number(value) else "not recorded"


def _cell(value: Any) -> str:
    """A text that stays in its cell and its line, and is no HTML."""
    return text_as_html(" ".join(str(value).split())).replace("|", "\\|")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def lines() -> Iterator[str]:
        yield f"| {' | '.join(map(_cell, columns))} |"
        yield f"|{'---|' * len(columns)}"
        for row in rows:
            yield f"| {' | '.join(map(_cell, row))} |"

    return "\n".join(lines())


def _facts(facts: Mapping[str, str]) -> str:
    """Label and value; values may hold Markdown of ours."""
    return "\n".join(f"- {label}: {value}" for label, value in facts.items())
