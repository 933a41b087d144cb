"""A LoRA adapter as GGUF, put on its base by llama.cpp itself: `make test-engines`."""

import os

import pytest

from qlora_cli.deploy.engines.engine import Questions
from qlora_cli.deploy.export import export_run
from qlora_cli.deploy.export_options import ExportOptions
from qlora_cli.deploy.formats.format import FormatOptions, WriteJob
from qlora_cli.deploy.formats.gguf_adapter import FORMAT
from qlora_cli.deploy.verify import compare, record_logits
from qlora_cli.model.tuned import find_tuned, load_tuned
from tests.deploy.models import cut_as_gpt2, load_base, save_llama, save_run, with_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("QLORA_GGUF_PYTHON" not in os.environ, reason="needs QLORA_GGUF_PYTHON"),
]

ROWS = [list(range(1, 40)), list(range(5, 60))]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 16, "use_rslora": True},
        {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"layers.1.mlp.up_proj": 2}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_llama_cpp_computes_what_peft_does(settings, tmp_path):
    base = cut_as_gpt2(save_llama(tmp_path / "base", tie_word_embeddings=True))
    tuned = with_adapter(load_base(base), **settings)
    tuned.save_pretrained(tmp_path / "adapter")
    job = WriteJob(base, tmp_path / "out", find_tuned(tmp_path / "adapter"), ROWS, FormatOptions("f32"))
    job.out.mkdir()
    FORMAT.check(job.source, job.options)
    FORMAT.write(job)
    opened_on = tmp_path / "opened-on"
    opened_on.mkdir()
    FORMAT.write_base(WriteJob(base, opened_on, job.source, ROWS))
    answers = FORMAT.engine.ask(job.out, Questions(ROWS, ROWS[:1], frozenset({3}), 4, base=opened_on))
    with tuned.disable_adapter():
        moved = compare(record_logits(tuned, ROWS), answers.logits).mean_kl
    assert moved > 0.05
    assert compare(record_logits(tuned, ROWS), answers.logits).mean_kl < 1e-4 * moved
    assert {path.name for path in job.out.iterdir()} == {"adapter.gguf", "chat_template.jinja"}


def test_an_adapter_comes_with_its_base_and_both_are_opened_as_they_lie_there(tmp_path):
    run = save_run(tmp_path / "run", cut_as_gpt2(save_llama(tmp_path / "base", tie_word_embeddings=False)))
    options = ExportOptions("gguf-adapter", base_quant="q8_0")
    exported = export_run(run.path, tmp_path / "out", options)
    names = {"adapter.gguf", "base-q8_0.gguf", "chat_template.jinja"}
    assert {path.name for path in exported.path.iterdir()} == names | {"qlora_merge.json", ".qlora_files.json"}
    assert exported.num_bytes == sum((exported.path / name).stat().st_size for name in names)
    assert exported.proof.base_agreement.mean_kl > 0
    assert exported.proof.is_within
    assert exported.figures()["format"].startswith("gguf-adapter f32 with its base as q8_0, ")
    again = FORMAT.engine.ask(
        exported.path / "adapter.gguf",
        Questions(ROWS, ROWS[:1], frozenset({3}), 4, base=exported.path / "base-q8_0.gguf"),
    )
    assert compare(record_logits(load_tuned(find_tuned(run.path)).model, ROWS), again.logits).mean_kl < 0.01
