"""Every step lands in metrics.jsonl; the screen shows a bar, or a line now and then."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState

from qlora_cli import console
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.callbacks import progress
from qlora_cli.train.callbacks.progress import ProgressCallback, peak_memory_bytes


class TrainOptions:
    """A callback on a clock that only moves when the test says so."""

    def __init__(self, path: Path, monkeypatch, max_steps: int = 10) -> None:
        self.seconds = 100.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.seconds))
        self.callback = ProgressCallback(path, tokens_per_epoch=1000)
        self.state = TrainerState(global_step=0, max_steps=max_steps, epoch=0)
        self.callback.on_train_begin(None, self.state, TrainerControl())

    def log(self, step: int, epoch: float, seconds: float, **logs: float) -> None:
        self.seconds += seconds
        self.state.global_step, self.state.epoch = step, epoch
        self.callback.on_step_end(None, self.state, TrainerControl())
        self.callback.on_log(None, self.state, TrainerControl(), logs)


@pytest.fixture
def begin(tmp_path, monkeypatch):
    return lambda **options: TrainOptions(tmp_path / "metrics.jsonl", monkeypatch, **options)


def test_a_step_is_recorded_with_what_the_trainer_says_and_what_it_cost(begin, tmp_path):
    begin().log(1, 0.5, seconds=2, loss=2.5, learning_rate=1e-4, grad_norm=0.3, total_flos=7)
    [line] = read_metrics(tmp_path / "metrics.jsonl")
    assert line.pop("peak_memory_bytes") > 0
    assert line == {
        "step": 1,
        "epoch": 0.5,
        "loss": 2.5,
        "learning_rate": 1e-4,
        "grad_norm": 0.3,
        "tokens_per_second": 250.0,  # half of 1000 tokens in 2 s
    }


def test_a_step_s_speed_does_not_pay_for_the_evaluation_before_it(begin, tmp_path):
    session = begin()
    session.log(1, 0.1, seconds=1, loss=2.0)
    session.log(1, 0.1, seconds=60, eval_loss=2.0, eval_perplexity=7.4)
    session.log(2, 0.2, seconds=1, loss=2.0)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line.get("tokens_per_second") for line in lines] == [100.0, None, 100.0]
    assert lines[1] == {"step": 1, "epoch": 0.1, "eval_loss": 2.0, "eval_perplexity": 7.4}


def test_a_summary_of_the_trainer_is_no_step(begin, tmp_path):
    begin().log(10, 1.0, seconds=1, train_runtime=12.0, train_loss=1.0)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_resumed_run_counts_the_tokens_since_it_went_on(tmp_path, monkeypatch):
    session = TrainOptions(tmp_path / "metrics.jsonl", monkeypatch)
    session.state.epoch = 0.5
    session.callback.on_train_begin(None, session.state, TrainerControl())
    session.log(6, 0.6, seconds=1, loss=2.0)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["tokens_per_second"] == 100.0


def test_without_a_terminal_a_long_run_says_a_line_now_and_then(begin, tmp_path, capsys):
    session = begin(max_steps=200)
    for number in range(1, 201):
        session.log(number, number / 200, seconds=1, loss=1.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["1/200", "10/200", "20/200"]
    assert len(lines) == 21
    assert "loss 1.0000" in lines[-1]
    assert "5 tokens/s" in lines[-1]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 200


def test_an_evaluation_is_always_told(begin, capsys):
    begin(max_steps=200).log(7, 0.1, seconds=1, eval_loss=2.0, eval_perplexity=7.389)
    assert capsys.readouterr().err == "step 7: eval loss 2.0000, perplexity 7.39\n"


def test_in_a_terminal_a_bar_shows_step_loss_speed_and_memory(begin, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, width=120))
    session = begin()
    session.log(3, 0.3, seconds=1, loss=1.25)
    session.callback.on_train_end(None, session.state, TrainerControl())
    shown_at_the_end = screen.getvalue().rpartition("training")[2]
    for shown in ("3/10", "loss 1.2500", "300 tokens/s", "GiB"):
        assert shown in shown_at_the_end
    session.callback.close()  # a second time does no harm


def test_peak_memory_is_about_what_is_held_now_or_more():
    held_bytes = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert 0.9 * held_bytes < peak_memory_bytes() < 1000 * held_bytes  # a unit that is wrong is off by 1024
