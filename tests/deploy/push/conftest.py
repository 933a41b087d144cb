"""A run with everything that a card says, and a Hub to push it to."""

from __future__ import annotations

import json

import huggingface_hub
import pytest

from qlora_cli import hub as hub_question
from qlora_cli.run.eval_results import EvalResults, Figure, Measure, MeasuredModel, StoredVerdict, TaskSummary
from qlora_cli.run.files import write_json
from qlora_cli.run.inventory import write_inventory
from qlora_cli.run.manifest import library_versions, read_manifest, write_manifest
from tests.deploy.models import save_llama, save_run
from tests.hub_server import TOKEN, served

SECRET_ROW = "the patient Ada L. of room 12"


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A finished run with its data report, its metrics and its evaluation; tests copy it."""
    folder = tmp_path_factory.mktemp("push")
    base = save_llama(folder / "home" / "llama", tie_word_embeddings=False)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nThe base's own card.\n")
    run = save_run(folder / "run", base)
    manifest = {
        **read_manifest(run),
        "status": "finished",
        "max_steps": 3,
        "num_steps": 3,
        "versions": library_versions(),
        "hardware": {"device": "cpu"},
        "started_in": {"directory": str(folder), "run": str(run.path)},
    }
    write_manifest(run, manifest)
    write_inventory(run.adapter_path)
    lines = [{"step": 1, "loss": 3.0}, {"step": 3, "loss": 2.125}, {"step": 3, "eval_loss": 2.25}]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"path": f"{folder}/home/rows.jsonl", "part": "train", "num_read": 1234, "num_rows": 1200}
    for place in (run.data_path, run.eval_path):
        place.mkdir()
    write_json(run.data_path / "report.json", {"sources": [source], "num_train": 1200, "num_eval": 34})
    write_json(run.data_path / "first_rows.json", {"rows": [{"place": "x", "pieces": [{"text": SECRET_ROW}]}]})
    (run.checkpoints_path / "step-000003").mkdir(parents=True)
    (run.checkpoints_path / "step-000003" / "optimizer.safetensors").write_bytes(b"states")
    models = [MeasuredModel(name, str(run.path), name, "float32 on cpu") for name in ("base", "tuned")]
    values = {"base": Figure(3.5, 3.4, 3.6, 90), "tuned": Figure(2.25, 2.2, 2.3, 90)}
    measure = Measure("held-out", "loss", False, "nats", "tokens", values=values)
    numbers = {"difference": -1.25, "low": -1.3, "high": -1.2, "p_value": 0.0, "p_adjusted": 0.0, "num_questions": 34}
    sentence = "better: -1.25 (95% interval -1.3 to -1.2)"
    rest = {"outcome": "better", "smallest_detectable": None, "rows_for_half": None, "sentence": sentence}
    verdict = StoredVerdict("held-out", "loss", "tuned", "base", **numbers, **rest)
    results = EvalResults(models, [measure], [verdict], [TaskSummary("held-out", 34)])
    write_json(run.eval_path / "results.json", results.as_dict())
    return run


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process takes for the real one, logged in; large files go through LFS, not Xet."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(hub_question, "_set_here", set())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with served() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        hub_question._question.cache_clear()
        yield found
    hub_question._question.cache_clear()
