"""Which type of a format is taken, with an engine that loses a known amount in each."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qlora_cli.deploy.engines.engine import Answers, Engine, Questions
from qlora_cli.deploy.export import with_base
from qlora_cli.deploy.export_attempts import Attempts, attempt_export, smallest_within, usual_or_larger
from qlora_cli.deploy.export_options import ExportOptions, check_options, format_for, may_be_larger, way_on
from qlora_cli.deploy.export_reference import Reference
from qlora_cli.deploy.formats.format import Format
from qlora_cli.deploy.formats.table import FORMATS
from qlora_cli.errors import ArgumentError, NumericError
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection

LOGITS = {"tuned": torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), "base": torch.zeros(8, 5)}
NOISE = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
LOST = {"tuned": {"2": 1.0, "4": 0.5, "5": 0.3, "8": 0.01}, "base": {"2": 1.0, "4": 0.2, "5": 0.1, "8": 0.01}}


def write(job):
    (job.out / "model").write_text(f"{job.plain.name} {job.options.quant or '4'}")


def engine(asked):
    def ask(folder, questions):
        kind, quant = (folder / "model").read_text().split()
        asked.append((kind, quant, len(questions.prompts)))
        logits = [LOGITS[kind] + LOST[kind][quant] * NOISE]
        return Answers(logits, [[3] for _ in questions.prompts], 1.0, "")

    return Engine("toy", "nothing", lambda: "1", ask)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def attempts(asked, tmp_path):
    form = Format(
        write, engine(asked), quants=("4", "2", "5", "8"), smallest_first=("2", "4", "5", "8"), larger=("5", "8")
    )
    questions = Questions([[1] * 8], [[1]], frozenset({3}))
    reference = Reference(questions, [LOGITS["tuned"]], [LOGITS["base"]], [[3]], "", [], "")
    folders = {name: tmp_path / name for name in ("tuned", "base", "scratch", "out")}
    for folder in folders.values():
        folder.mkdir()
    source = TunedSource(tmp_path, ModelSection(base_model="toy"))
    return Attempts(
        source,
        form,
        ExportOptions("gguf"),
        reference,
        folders["tuned"],
        1e-4,
        folders["scratch"],
        True,
        "1",
        folders["base"],
    )


def test_the_usual_type_gives_way_to_the_first_larger_one_that_is_near_enough(attempts, tmp_path):
    passed, chosen = usual_or_larger(attempts, tmp_path / "out")
    assert [attempt.quant for attempt in passed] == ["4", "5"]
    assert chosen.quant == "8"
    assert chosen.proof.is_within
    assert (tmp_path / "out" / "model").read_text() == "tuned 8"


def test_a_type_that_is_near_enough_is_the_only_one_that_is_written(attempts, asked, tmp_path):
    passed, chosen = usual_or_larger(replace(attempts, max_kl_of_merge=10.0), tmp_path / "out")
    assert (passed, chosen.quant) == ([], "4")
    assert {quant for _, quant, _ in asked} == {"4"}


def test_a_type_without_the_group_that_was_asked_for_is_not_tried(attempts, tmp_path):
    def check(source, options):
        if options.quant == "5":
            raise ArgumentError("no such group")

    _, chosen = usual_or_larger(replace(attempts, form=replace(attempts.form, check=check)), tmp_path / "out")
    assert chosen.quant == "4"


def test_the_base_that_an_adapter_is_opened_on_is_written_once_for_all_types(attempts, tmp_path):
    written = []
    form = replace(attempts.form, loses_nothing=True, write_base=written.append)
    (tmp_path / "scratch" / "base").mkdir()
    opened_on = {with_base(replace(attempts, form=form)).reference.questions.base for _ in range(2)}
    assert opened_on == {written[0].out}
    assert len(written) == 1


def opened_together(asked):
    """An engine that opens an adapter on its base, or the base alone; what the base loses both lose."""

    def ask(folder, questions):
        opened_on = questions.base or folder
        kind = "base" if questions.base is None else "tuned"
        asked.append((kind, len(questions.prompts)))
        quant = (opened_on / "base").read_text()
        return Answers([LOGITS[kind] + LOST["base"][quant] * NOISE], [[3] for _ in questions.prompts], 1.0, "")

    return Engine("toy", "nothing", lambda: "1", ask)


@pytest.mark.parametrize("quant", ["2", "4", "8"])
def test_a_base_that_is_handed_on_beside_its_adapter_is_the_yardstick(attempts, asked, tmp_path, quant):
    def write_base(job):
        (job.out / "base").write_text(job.options.base_quant)

    options = ExportOptions("gguf-adapter", base_quant=quant)
    form = replace(attempts.form, write_base=write_base, engine=opened_together(asked), loses_nothing=False)
    (tmp_path / "scratch" / "base").mkdir()
    chosen = attempt_export(with_base(replace(attempts, form=form, options=options, base=None)), tmp_path / "out")
    assert asked == [("base", 0), ("tuned", 1)]
    assert chosen.proof.base_agreement.mean_kl > 0
    assert chosen.proof.max_kl == pytest.approx(max(1.2 * chosen.proof.base_agreement.mean_kl, 1e-4))


def test_a_base_is_handed_on_by_formats_of_adapters_alone_and_as_a_type_that_there_is():
    adapter = find_format("gguf-adapter", base_quant="q4_k_m")
    assert not adapter.loses_nothing
    assert find_format("gguf-adapter").loses_nothing
    assert "--base-quant q8_0" in way_on(adapter, ExportOptions("gguf-adapter", base_quant="q4_k_m"), "f32")
    assert "--base-quant f16" in way_on(adapter, ExportOptions("gguf-adapter", base_quant="q8_0"), "f32")
    assert "merge again" in way_on(adapter, ExportOptions("gguf-adapter", base_quant="f16"), "f32")
    with pytest.raises(ArgumentError, match=r"--base-quant q9 is none of gguf-adapter\nhint: use one of q4_k_m, f32"):
        find_format("gguf-adapter", base_quant="q9")
    with pytest.raises(
        ArgumentError, match=r"--base-quant does not go with --format gguf\n.*--format gguf-adapter takes"
    ):
        find_format("gguf", base_quant="q4_k_m")


def find_format(name, **options):
    asked = ExportOptions(name, **options)
    check_options(asked)
    return format_for(TunedSource(Path(), ModelSection(base_model="toy")), asked)


def test_a_search_asks_for_logits_alone_until_one_type_is_within_the_bound(attempts, asked, tmp_path):
    tried, chosen = smallest_within(replace(attempts, options=ExportOptions("gguf", max_kl=0.05)), tmp_path / "out")
    assert [attempt.quant for attempt in tried] == ["2", "4", "5"]
    assert (chosen.quant, chosen.proof.num_equal_texts) == ("5", 1)
    assert chosen.proof.figures()["mean KL allowed"] == "0.05"
    assert asked == [("tuned", "2", 0), ("tuned", "4", 0), ("tuned", "5", 0), ("base", "5", 0), ("tuned", "5", 1)]


def test_a_search_in_vain_names_a_bound_that_the_nearest_type_is_within(attempts, tmp_path):
    with pytest.raises(NumericError, match=r"use --max-kl") as caught:
        smallest_within(replace(attempts, options=ExportOptions("gguf", max_kl=1e-9)), tmp_path / "out")
    bound = float(caught.value.problems[0].hint.split()[-1])
    _, chosen = smallest_within(replace(attempts, options=ExportOptions("gguf", max_kl=bound)), tmp_path / "out")
    assert chosen.quant == "8"


@pytest.mark.parametrize(
    ("format", "quant", "hint"),
    [
        ("gguf", "q4_k_m", "leave --quant out: the first of q4_k_m, q5_k_m, q6_k, q8_0, f16 that is near enough"),
        ("gguf", "iq2_xxs", "leave --quant out"),
        ("gguf", "q6_k", "take --quant q8_0"),
        ("gguf", "f16", "merge again"),
        ("compressed-tensors", "w4a16", "leave --quant out: the first of w4a16, w8a16"),
        ("mlx", "8bit", "take --quant bf16"),
        ("bnb", "nf4", "take --quant int8"),
        ("hf", None, "merge again"),
    ],
)
def test_a_refusal_says_what_to_type(format, quant, hint):
    assert hint in way_on(FORMATS[format], ExportOptions(format, quant), quant)


@pytest.mark.parametrize(
    "options", [ExportOptions("gguf", "q4_k_m"), ExportOptions("gguf", max_kl=1.0), ExportOptions("bnb")]
)
def test_no_other_type_is_taken_where_type_or_bound_is_named_or_the_merge_is_for_one_type(options):
    assert not may_be_larger(FORMATS[options.format], options)
    assert may_be_larger(FORMATS["gguf"], ExportOptions("gguf"))


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_larger_types_are_types_of_the_format(form):
    assert set(form.larger) <= set(form.quants) - set(form.quants[:1])
