"""What trackers wrote, read back from their own files: `make test-trackers`, which installs them beside the project."""

import glob
import json
import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

TRACKERS_PYTHON = os.environ.get("QLORA_TRACKERS_PYTHON")
"""Interpreter of an environment with the extra `track`."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TRACKERS_PYTHON, reason="needs QLORA_TRACKERS_PYTHON, which `make test-trackers` sets"),
]

PROJECT = Path(__file__).resolve().parents[2]
RECIPE = """
model: {base_model: BASE}
quantization: null
lora: {r: 4, lora_dropout: 0.0}
data: {train: rows.jsonl, max_length: 64, packing: false}
training: {max_steps: 3, per_device_train_batch_size: 2, gradient_accumulation_steps: 1, logging_steps: 1}
tracking: {report_to: [TRACKER], project: trial}
"""

READ_MLFLOW = """
import json, os
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
import mlflow
mlflow.set_tracking_uri("file:./mlruns")
[experiment] = mlflow.search_experiments(filter_string="name = 'trial'")
client = mlflow.MlflowClient()
[run] = client.search_runs([experiment.experiment_id])
print(json.dumps([[m.step, m.value] for m in client.get_metric_history(run.info.run_id, "loss")]))
"""

READ_WANDB = """
import glob, json
from wandb.proto import wandb_internal_pb2
[path] = glob.glob("wandb/offline-run-*/*.wandb")
data = open(path, "rb").read()
at, records, parts = 7, [], b""  # LevelDB's log behind a head of 7 bytes: blocks of 32 KiB, records of head and bytes
while at + 7 <= len(data):
    if 2**15 - at % 2**15 < 7:
        at += 2**15 - at % 2**15
        continue
    size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
    parts += data[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):
        records.append(parts)
        parts = b""
losses = []
for content in records:
    record = wandb_internal_pb2.Record.FromString(content)
    items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
    if "train/loss" in items:
        losses.append([int(items["train/global_step"]), float(items["train/loss"])])
print(json.dumps(losses))
"""


def read_trackio(folder):
    [path] = glob.glob(f"{folder}/trackio/trial.db")
    rows = sqlite3.connect(path).execute("select metrics from metrics order by id").fetchall()
    metrics = [json.loads(text) for (text,) in rows]
    return [[each["train/global_step"], each["train/loss"]] for each in metrics if "train/loss" in each]


def run_in(folder, *arguments):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")},
        "PYTHONPATH": str(PROJECT),
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(folder / "trackio"),
        "QLORA_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        [TRACKERS_PYTHON, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "trackio"])
def test_losses_are_those_of_the_run(tracker, tiny_base, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("BASE", str(tiny_base)).replace("TRACKER", tracker))
    turns = [
        [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"it is {n}"}] for n in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    run_in(tmp_path, "-m", "qlora_cli", "train", "recipe.yaml", "--run-dir", "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [[line["step"], line["loss"]] for line in lines if "loss" in line]
    if tracker == "trackio":
        losses = read_trackio(tmp_path)
    else:
        losses = json.loads(
            run_in(tmp_path, "-c", {"wandb": READ_WANDB, "mlflow": READ_MLFLOW}[tracker]).splitlines()[-1]
        )
    assert len(losses) == 3
    assert losses == [[step, pytest.approx(loss, abs=1e-4)] for step, loss in expected]
