"""Data checks before a run: the summary that is printed and kept, and whether the base can take the data."""

from __future__ import annotations

import json
import shutil
from itertools import islice

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from qlora_cli import console
from qlora_cli.data.prepare import PreparedData
from qlora_cli.data.report import DataReport
from qlora_cli.data.show.preview import show_example
from qlora_cli.data.show.token_pieces import runs_of
from qlora_cli.data.token_row import TokenRow
from qlora_cli.data.unread import UnreadKind
from qlora_cli.model.embedding_limits import check_length, check_tokens, num_positions
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.files import write_json, write_text

NUM_FIRST_ROWS = 3
NUM_FIRST_TOKENS = 2048
"""Of a row; what follows is not stored."""


def save_data_files(prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, run: RunDirectory) -> None:
    """Write what was taken out, the whole report, and the first rows into the run's `data` folder."""
    run.data_path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(prepared.rejected_path, run.data_path / prepared.rejected_path.name)
    write_json(run.data_path / "report.json", prepared.report.as_dict())
    _save_first_rows(prepared, tokenizer, run)


def _save_first_rows(prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, run: RunDirectory) -> None:
    """Write the first rows with their mask for the report of the run; they are content, and stay as they are."""
    documents = islice(prepared.train.all_documents(), NUM_FIRST_ROWS)
    rows = []
    for row in documents:
        kept = TokenRow(row.input_ids[:NUM_FIRST_TOKENS], row.labels[:NUM_FIRST_TOKENS], row.place)
        pieces = [
            {"text": run.text, "is_trained": run.is_trained, "is_special": run.is_special}
            for run in runs_of(kept, tokenizer)
        ]
        rows.append({"place": str(row.place), "num_tokens": len(row.input_ids), "pieces": pieces})
    text = json.dumps({"rows": rows}, indent=2, ensure_ascii=False) + "\n"
    write_text(run.data_path / "first_rows.json", text, is_content=True)


def print_data_summary(prepared: PreparedData, tokenizer: PreTrainedTokenizerBase) -> None:
    """Counts, everything that was found, the realised mix, and the first row as it is trained."""
    report = prepared.report
    cached = ", from the cache" if prepared.is_cached else ""
    console.note(
        f"data: {report.num_train:,} rows to train on, {report.num_eval:,} held out{cached}; "
        f"{report.num_tokens:,} tokens, {report.num_trained_tokens / report.num_tokens:.0%} of them trained"
    )
    for finding in report.findings:
        rows = "row" if finding.num_rows == 1 else "rows"
        names = f": {finding.text}" if finding.what in tuple(UnreadKind) else ""
        where = f"; the first is {finding.first}" if finding.first else ""
        console.note(f"  {finding.verdict}: {finding.num_rows:,} {rows}, {finding.what}{names}{where}")
    _show_mix(report)
    first = prepared.train.documents(0)[0]
    has_colour = console.has_colour(console.err)
    console.note(f"first row ({first.place}), trained tokens {'in green' if has_colour else 'between ⟦ and ⟧'}:")
    console.err.print(show_example(first, tokenizer, with_brackets=not has_colour))


def check_vocab_and_positions(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, name: str, prepared: PreparedData
) -> None:
    """Refuse data that the base `name` has no embeddings or no positions for; say where it was not made for them.

    Raises:
        RecipeError: with what is missing.
    """
    parts = (prepared.train, prepared.eval)
    check_tokens(model, tokenizer, name, lambda: max(part.largest_id for part in parts))
    check_length(model, name, max(part.longest_row for part in parts))
    longest, positions = max(part.longest_document for part in parts), num_positions(model.config)
    if positions is not None and longest > positions:
        console.warn(
            f"the longest row has {longest:,} tokens, and '{name}' was made for {positions:,} positions: it has never "
            f"seen later ones; --set data.max_length={positions} stays within"
        )


def _show_mix(report: DataReport) -> None:
    sources = [source for source in report.sources if source.part == "train"]
    if len(sources) < 2:
        return
    for source in sources:
        console.note(
            f"  mix: {source.path}: {source.num_rows:,} rows ({source.share_of_rows:.1%}), "
            f"{source.num_tokens:,} tokens ({source.share_of_tokens:.1%})"
        )
