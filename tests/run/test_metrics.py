"""metrics.jsonl survives a crash and a resume."""

from __future__ import annotations

from qlora_cli.run.metrics import append_metrics, forget_after, read_metrics


def test_lines_come_back_as_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"step": 1, "loss": 0.1 + 0.2})
    append_metrics(path, {"step": 2, "loss": float("nan")})
    assert read_metrics(path) == [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": None}]


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


def test_a_resume_forgets_the_steps_it_does_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_metrics(path, {"step": step})
    forget_after(path, 2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_a_line_holds_no_secret(tmp_path):
    append_metrics(tmp_path / "metrics.jsonl", {"step": 1, "note": "hf_" + "a1" * 17})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "note": "(secret Hugging Face token)"}]
