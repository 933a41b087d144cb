"""The functions in the kernel of a notebook: its streams, its event loop, its stop button.

Needs `nbclient` and `ipykernel`, which nothing else here does; skipped without them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def notebook(tiny_base, chat_data, tmp_path, monkeypatch):
    """Run cells in a new kernel; `stop_at` is a file at whose writing the kernel is interrupted."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    setting = (
        "from qlora_cli import evaluate, generate, merge, train\n"
        f"recipe = {{'model': {{'base_model': {str(tiny_base)!r}}},\n"
        f"  'data': {{'train': {str(chat_data)!r}, 'max_length': 64, 'eval_fraction': 0.1}},\n"
        "  'training': {'max_steps': 4, 'learning_rate': 0.01, 'per_device_train_batch_size': 2,\n"
        "               'gradient_accumulation_steps': 1}}"
    )

    def run(*cells: str, stop_at: Path | None = None) -> list[str]:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (setting, *cells)])
        client = nbclient.NotebookClient(
            book, kernel_name="python3", timeout=300, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
        )
        if stop_at is not None:
            threading.Thread(target=interrupt_at, args=(client, tmp_path / stop_at), daemon=True).start()
        client.execute()
        return [text_of(cell.outputs) for cell in book.cells[1:]]

    return run


def interrupt_at(client, path: Path) -> None:
    while not (path.is_file() and path.stat().st_size):
        time.sleep(0.05)
    os.kill(client.km.provisioner.pid, signal.SIGINT)


def text_of(outputs) -> str:
    parts = []
    for output in outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            parts.append(f"{output.ename}: {output.evalue}")
        else:
            parts.append(output.data["text/plain"])
    return "".join(parts)


def test_train_evaluate_merge_and_generate_in_cells(notebook):
    trained, again, measured, merged, answered, after = notebook(
        "result = train(recipe)\nresult.num_steps",
        "train(recipe, run_dir='again').num_steps",
        "evaluate(result.run)",
        "merge(result.run).path",
        "generate('add 1 and 2', max_new_tokens=3).num_new_tokens",
        "import asyncio, sys, signal\n"
        "print(asyncio.get_event_loop().is_running(), type(sys.stdout).__name__)\n"
        "print(signal.getsignal(signal.SIGINT).__name__)",
    )
    assert "step 4/4" in trained
    assert trained.endswith("4")
    assert again.endswith("4")
    assert "measure" in measured
    assert "loss" in measured
    assert "runs/recipe/merged" in merged
    assert answered.endswith(("1", "2", "3"))
    assert after == "True OutStream\ndefault_int_handler\n"
    assert not any(code in trained for code in ("\x1b[2K", "\x1b[?25", "IProgress"))


def test_the_stop_button_saves_a_checkpoint_and_the_kernel_lives(notebook):
    stopped, resumed = notebook(
        "train(recipe, overrides={'training.max_steps': 500})",
        "result = train(recipe, overrides={'training.max_steps': 500}, resume=True, stop_after=1)\n"
        "print(result.num_steps_now, result.num_steps > 1)",
        stop_at=Path("runs/recipe/metrics.jsonl"),
    )
    assert "KeyboardInterrupt: stopped at step" in stopped
    assert "of 500; the checkpoint is saved" in stopped
    assert resumed.endswith("1 True\n")
