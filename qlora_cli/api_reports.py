"""`qlora eval`, `report`, `compare` and `push` as functions; they belong to `api.py`, which has the others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_cli import console
from qlora_cli.calling import AnyPath, called
from qlora_cli.choices import LoadedAs
from qlora_cli.progress import loading_libraries

if TYPE_CHECKING:
    from qlora_cli.deploy.push.push import Pushed
    from qlora_cli.evaluate.evaluation import Outcome
    from qlora_cli.report.compare import Comparison
    from qlora_cli.report.write import Report


@called
def evaluate(
    run: AnyPath | Sequence[AnyPath] | None = None,
    *,
    against: AnyPath = "base",
    data: AnyPath | None = None,
    tasks: AnyPath | Sequence[AnyPath] = (),
    metrics: str | Sequence[str] = (),
    columns: Mapping[str, str] | Sequence[str] = (),
    general_text: AnyPath | None = None,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    judge: tuple[str, str] | None = None,
    base_model: AnyPath | None = None,
    revision: str | None = None,
    quantization: LoadedAs | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Outcome:
    """Measure tuned models beside their base, as `qlora eval`; the results are written to `<run>/eval/` too.

    Args:
        run: run directory, PEFT adapter folder or model folder, or several; the latest run when None.
        against: what each is compared with: `base`, its own base without the adapter, or another run or folder.
        data: rows to measure loss and perplexity on; the recipe's eval rows when None.
        tasks: files of prompts and answers, or benchmarks of lm-eval by name or file; the recipe's when there are none.
        metrics: for those files, of those that `qlora eval --help` lists; exact_match when there are none.
        columns: `{"instruction": "question"}`, or texts as `--columns` takes them; as the run's rows when None.
        general_text: text file that shows what was forgotten, `shipped` or `none`; the recipe's when None.
        batch_size, max_new_tokens, limit, num_fewshot: as the options; what recipe or benchmark say when None.
        judge: URL of an OpenAI-compatible server and its model, which compares answers.
        base_model, revision, quantization, overrides: as `merge`.

    Raises:
        QloraError: if there is nothing to measure, or on.
        KeyboardInterrupt: after Ctrl-C; what was measured is kept, and the same call continues there.
    """
    from qlora_cli.run.directory import refuse_absent

    folders: list[AnyPath | None] = [run] if run is None or isinstance(run, str | os.PathLike) else list(run) or [None]
    refuse_absent(*folders)
    with loading_libraries():
        from qlora_cli.evaluate.request import measure, request_of
        from qlora_cli.model.tuned import choose_tuned, find_tuned

    sizes = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "limit": limit, "num_fewshot": num_fewshot}
    request = request_of(data, tasks, metrics, columns, general_text, sizes, judge)
    with console.library_noise_to(None):
        sources = [choose_tuned(one, base_model, revision, quantization, overrides) for one in folders]
        return measure(sources, request, None if str(against) == "base" else find_tuned(Path(against)))


@called
def report(run: AnyPath | None = None, *, out: AnyPath | None = None, watch: bool = False) -> Report:
    """Write the page that shows a run, as `qlora report`.

    Args:
        run: run directory; the latest run when None.
        out: the page; `<run>/report.html` when None.
        watch: write it again whenever the run has grown, until the run is over.

    Raises:
        QloraError: if there is no such run, or a file that is not ours has the name.
        KeyboardInterrupt: after Ctrl-C, while a run is watched; the page is there, and no longer loads itself again.
    """
    from qlora_cli.report.write import watch_report, write_report
    from qlora_cli.run.directory import RunDirectory, latest_run

    directory = latest_run() if run is None else RunDirectory(Path(run))
    path = None if out is None else Path(out)
    return watch_report(directory, path) if watch else write_report(directory, path)


@called
def compare(runs: Sequence[AnyPath], *, out: AnyPath | None = None) -> Comparison:
    """Lay runs beside each other, as `qlora compare`; each later one is compared with the first.

    Args:
        runs: two run directories at least.
        out: the page; `compare.html` beside the first run when None.

    Raises:
        QloraError: if there are fewer than two, one of them is none, or a file that is not ours has the name.
    """
    from qlora_cli.report.compare_page import read_and_compare
    from qlora_cli.run.directory import RunDirectory

    return read_and_compare([RunDirectory(Path(run)) for run in runs], None if out is None else Path(out))


@called
def push(
    run: AnyPath | None,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    replace_card: bool = False,
    of_run: AnyPath | None = None,
    base_model: str | None = None,
) -> Pushed:
    """Upload an adapter or a model to the Hugging Face Hub with a model card, as `qlora push`.

    Args:
        run: run directory, PEFT adapter folder, merged or exported model; the latest run when None.
        repo: OWNER/NAME on the Hub; without OWNER your own.
        private: make the repository a private one.
        dry_run: collect the files and write the card, and ask nobody.
        revision: branch to push to; the repository's own when None.
        replace_card: replace a README.md of the repository that somebody has written.
        of_run: the run that an exported folder was made from, for its card.
        base_model: Hub id of a base that was trained on from a folder.

    Raises:
        QloraError: if there is nothing to push, a file holds a secret, or the Hub refuses or fails.
        KeyboardInterrupt: after Ctrl-C; the repository is as it was.
    """
    with loading_libraries():
        from qlora_cli.deploy.push.push import PushOptions, push_folder

    made_from = None if of_run is None else Path(of_run)
    options = PushOptions(private, dry_run, revision, replace_card, made_from, base_model)
    return push_folder(None if run is None else Path(run), repo, options)
