"""Each road ends in one clear error where a library lacks a name that it needs."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import CodeType

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel, Trainer
from transformers.utils import chat_template_utils
from trl import SFTConfig

from qlora_cli import upstream
from qlora_cli.calling import called
from qlora_cli.data.render.traced_template import TracedTemplate
from qlora_cli.deploy.fold_plan import fold_plan
from qlora_cli.errors import ResourceError
from qlora_cli.model.base import load_base
from qlora_cli.plan.machine import doctor
from qlora_cli.plan.trace.fake_model import skeleton
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.recipe.schema import ModelSection, QuantizationSection, Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.session import TrainOptions, train_recipe
from qlora_cli.upstream_names import NAMES
from qlora_cli.upstream_row import TESTED, Road, Use

SIGNATURES = Path(__file__).resolve().parent / "golden" / "upstream_signatures.json"

NOWHERE = ModelSection(base_model="no-such-folder")
RECIPE = Recipe.model_validate(
    {"name": "small", "model": {"base_model": "no-such-folder"}, "data": {"train": "no-such-file.jsonl"}}
)

BEGINNINGS = {
    Road.TRAINING: lambda: train_recipe(RECIPE, RunDirectory(Path("no-such-run")), TrainOptions()),
    Road.TEMPLATES: lambda: TracedTemplate("{{ messages }}", {}),
    Road.BASE: lambda: load_base(NOWHERE, None),
    Road.QUANTIZED: lambda: load_base(NOWHERE, QuantizationSection()),
    Road.MERGE: lambda: fold_plan(PreTrainedModel(LlamaConfig())),
    Road.PLAN: lambda: skeleton(PlanRequest(RECIPE, LlamaConfig())),
}
"""The first function of each road, called with too little to get anywhere."""

OF_TORCH_ITSELF = {"ops.aten", "UntypedStorage"}
"""What nothing can be taken away from: torch makes its attributes anew, or forbids it."""


@pytest.fixture(autouse=True)
def _forget_checks(monkeypatch, tmp_path):
    """A road that was found whole is not looked at again; one that does not end writes elsewhere."""
    monkeypatch.chdir(tmp_path)
    upstream.check.cache_clear()
    yield
    upstream.check.cache_clear()


def take_away(monkeypatch, name):
    """Make it so that the installed library does not have the name."""
    owner_path, _, last = f"{name.module}.{name.path}".rpartition(".")
    if name.inside:
        rename_inside(monkeypatch, upstream._resolve(f"{name.module}.{name.inside}"), name.path)
        return
    owner = upstream._resolve(owner_path)
    for holder in inspect.getmro(owner) if inspect.isclass(owner) else [owner]:
        if last in vars(holder):
            monkeypatch.delattr(holder, last)


def rename_inside(monkeypatch, function, word):
    """As if a release of the library had another name there."""
    plain = inspect.unwrap(getattr(function, "fget", None) or function)
    monkeypatch.setattr(getattr(plain, "__func__", plain), "__code__", renamed(plain.__code__, word))


def renamed(value, word):
    if isinstance(value, CodeType):
        return value.replace(co_names=renamed(value.co_names, word), co_consts=renamed(value.co_consts, word))
    if isinstance(value, tuple):
        return tuple(renamed(part, word) for part in value)
    return f"{word}_of_tomorrow" if value == word else value


def error_of(road):
    with pytest.raises(ResourceError) as raised:
        BEGINNINGS[road]()
    assert raised.value.exit_code == 5
    return str(raised.value).splitlines()


def test_all_is_there():
    assert list(map(str, upstream.all_gone())) == []


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if name.road in BEGINNINGS and name.path.rpartition(".")[0] not in OF_TORCH_ITSELF],
    ids=lambda name: f"{name.module}.{name.inside or name.path}.{name.path if name.inside else ''}",
)
def test_a_road_ends_where_a_name_that_it_needs_is_gone(name, monkeypatch):
    take_away(monkeypatch, name)
    problem, hint = error_of(name.road)
    version = metadata.version(name.library)
    assert re.match(rf"error: {name.library} {re.escape(version)} has no \S*{re.escape(name.path)}\b", problem)
    assert problem.endswith(f", which {name.need} needs")
    assert hint == f"hint: pip install '{name.library}=={TESTED[name.library]}'"


def test_the_error_reads_like_this(monkeypatch):
    monkeypatch.delattr(Trainer, "_load_rng_state")
    monkeypatch.setattr(upstream.metadata, "version", lambda library: "5.31.0")
    assert error_of(Road.TRAINING) == [
        "error: transformers 5.31.0 has no Trainer._load_rng_state, which exact resume needs",
        f"hint: pip install 'transformers=={TESTED['transformers']}'",
    ]


def test_a_method_that_is_there_but_that_nobody_calls_any_more_is_found(monkeypatch):
    rename_inside(monkeypatch, Trainer._run_epoch, "_load_rng_state")
    problem, _ = error_of(Road.TRAINING)
    assert problem.endswith("no longer calls Trainer._load_rng_state, which exact resume needs")


def test_values_in_another_order_are_found(monkeypatch):
    def set_initial_training_values(self, args, dataloader):
        max_steps = num_epochs = 1
        return max_steps, num_epochs

    monkeypatch.setattr(Trainer, "set_initial_training_values", set_initial_training_values)
    problem, _ = error_of(Road.TRAINING)
    assert "no longer returns max_steps last from Trainer.set_initial_training_values, which" in problem


def test_processes_that_accelerate_joins_are_refused():
    upstream.check_alone(1)
    with pytest.raises(ResourceError, match=r"accelerate \S+ joins the 2 processes"):
        upstream.check_alone(2)


def test_a_library_that_cannot_be_imported_is_not_said_to_lack_a_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as Python marks what must not be imported
    with pytest.raises(ImportError):
        upstream.check(Road.MERGE)


def test_a_share_of_warm_up_is_read_as_one():
    arguments = SFTConfig(output_dir="no-such-run", warmup_steps=0.25, use_cpu=True, bf16=False)
    assert arguments.get_warmup_steps(8) == 2


@pytest.mark.slow
def test_an_import_that_fails_ends_a_command_in_the_same_error():
    code = (
        "import sys\n"
        "from transformers.utils import chat_template_utils\n"
        "del chat_template_utils._compile_jinja_template\n"
        "sys.argv = ['qlora', 'data', 'check', 'smoke']\n"
        "from qlora_cli.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert "has no utils.chat_template_utils._compile_jinja_template, which the loss mask needs" in done.stderr
    assert f"hint: pip install 'transformers=={TESTED['transformers']}'" in done.stderr


def test_an_import_that_fails_ends_a_function_in_the_same_error(monkeypatch):
    monkeypatch.delattr(chat_template_utils, "_compile_jinja_template")

    @called
    def render():
        from transformers.utils.chat_template_utils import _compile_jinja_template  # noqa: F401

    with pytest.raises(ResourceError, match="which the loss mask needs"):
        render()


def test_a_module_that_is_gone_is_told_by_what_we_need_of_it(monkeypatch):
    monkeypatch.delattr(torch._subclasses, "fake_tensor")
    monkeypatch.setitem(sys.modules, "torch._subclasses.fake_tensor", None)
    fault = ModuleNotFoundError("No module named", name="torch._subclasses.fake_tensor")
    error = upstream.behind(fault)
    assert error is not None
    assert "has no _subclasses.fake_tensor.FakeTensor, which tracing a step needs" in str(error)
    assert upstream.behind(ModuleNotFoundError("No module named", name="wandb")) is None


def test_other_faults_stay_what_they_are():
    assert upstream.behind(AttributeError("'Trainer' object has no attribute '_load_rng_state'")) is None
    assert upstream.behind(KeyError("_load_rng_state")) is None

    @called
    def fail():
        return [].nothing

    with pytest.raises(AttributeError, match="nothing"):
        fail()


def test_the_doctor_names_what_is_gone(monkeypatch):
    [finding] = doctor.try_names()
    assert finding.is_fine
    monkeypatch.delattr(Trainer, "_load_rng_state")
    [finding] = doctor.try_names()
    assert not finding.is_fine
    assert "Trainer._load_rng_state, which exact resume needs: pip install" in finding.found


def signature_of(name):
    """How a function is called, without annotations, which each Python writes in its own way; "" where it has none."""
    found = upstream._resolve(f"{name.module}.{name.path}")
    if isinstance(found, torch._ops.OpOverloadPacket):
        return " | ".join(str(getattr(found, overload)._schema) for overload in found.overloads())
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return ""
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def test_what_we_override_and_call_is_called_as_before(request):
    """`pytest tests/test_upstream.py --update-golden` writes the signatures anew, after each was looked at."""
    named = [name for name in NAMES if not name.inside and name.road is not Road.CALIBRATION]
    kept = [name for name in named if name.use in (Use.OVERRIDDEN, Use.CALLED, Use.TRUSTED) or "aten" in name.path]
    found = {f"{name.module}.{name.path}": signature_of(name) for name in kept}
    if request.config.getoption("--update-golden"):
        SIGNATURES.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    before = json.loads(SIGNATURES.read_text("utf-8"))
    assert found.keys() == before.keys()
    assert {name: (before[name], "is now", now) for name, now in found.items() if now != before[name]} == {}
