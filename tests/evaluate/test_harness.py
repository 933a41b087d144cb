"""lm-evaluation-harness through us beside its own command on the merged model."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.evaluate.harness import HarnessRequest, load_harness, run_harness
from qlora_cli.verdict.paired import Paired, judge_pairs
from tests.deploy.models import save_llama
from tests.evaluate import lm_eval_command
from tests.evaluate.local_benchmarks import write_benchmarks
from tests.reliability.harness.forkserver import ForkServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'qlora-cli[eval]'"),
]

NUMBERS_OF_EXAMPLES = (0, 2)


@pytest.fixture(scope="module", autouse=True)
def _task_files_are_read_once():
    with lm_eval_command.own_files_read_once():
        yield


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A model with an adapter whose update is as large as its weights, and its tokenizer."""
    folder = save_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def merged(tuned, tmp_path_factory):
    """The same, merged by PEFT into a folder."""
    model, tokenizer = tuned
    folder = tmp_path_factory.mktemp("merged")
    copy = AutoModelForCausalLM.from_config(model.get_base_model().config, dtype=torch.float32)
    names = {name.replace(".base_layer", ""): tensor for name, tensor in model.get_base_model().state_dict().items()}
    copy.load_state_dict({name: tensor.clone() for name, tensor in names.items() if "lora_" not in name})
    twin = dict(copy.named_modules())
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            twin[name].weight.data += module.get_delta_weight("default").detach()
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def benchmarks(merged, tmp_path_factory):
    """Local tasks; two thirds of the generated answers are right, and the others are of another question."""
    folder = write_benchmarks(tmp_path_factory.mktemp("tasks"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    answers = []
    for line in (folder / "text.jsonl").read_text("utf-8").splitlines():
        ids = tokenizer(f"Question: {json.loads(line)['question']}\nAnswer:", return_tensors="pt").input_ids
        made = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        answers.append(tokenizer.decode(made, skip_special_tokens=True))
    write_benchmarks(folder, [text if index % 3 else text + "!" for index, text in enumerate(answers)])
    return folder


@pytest.fixture(scope="module")
def theirs(merged, benchmarks, tmp_path_factory):
    """What lm-eval's command writes about the merged model: by number of examples, its figures and questions."""
    asked = {number: tmp_path_factory.mktemp("lm_eval") for number in NUMBERS_OF_EXAMPLES}
    arguments = ["--model", "hf", "--model_args", f"pretrained={merged},dtype=float32", "--log_samples"]
    arguments += ["--tasks", "local_choice,local_text", "--include_path", str(benchmarks)]
    arguments += ["--batch_size", "4", "--device", "cpu"]
    commands = [[*arguments, "--output_path", str(out), "--num_fewshot", str(number)] for number, out in asked.items()]
    log = tmp_path_factory.mktemp("log") / "log"
    with ForkServer() as server:
        function = f"{lm_eval_command.__name__}:{lm_eval_command.run_each.__name__}"
        assert server.run(function, {"commands": commands}, log=log) == 0, log.read_text()[-2000:]
    return {number: written(out) for number, out in asked.items()}


def written(out: Path) -> tuple[dict, dict]:
    """Figures of each task, and what is logged of each of its questions."""
    (results,) = out.rglob("results_*.json")
    samples = {
        path.name.split("_2")[0].removeprefix("samples_"): [json.loads(line) for line in path.open("r")]
        for path in out.rglob("samples_*.jsonl")
    }
    return json.loads(results.read_text("utf-8"))["results"], samples


@pytest.fixture(scope="module", params=NUMBERS_OF_EXAMPLES, ids=["no examples", "2 examples"])
def both(request, tuned, benchmarks, theirs):
    """Figures of ours, of lm-eval's command on the merged model, and ours of the base."""
    model, tokenizer = tuned
    asked = HarnessRequest(("local_choice", "local_text"), num_fewshot=request.param, folders=(benchmarks,))
    tasks = load_harness(asked)
    ours = run_harness(tasks, model, tokenizer, batch_size=4)
    with model.disable_adapter():
        base = run_harness(tasks, model, tokenizer, batch_size=4)
    return ours, *theirs[request.param], base


def test_the_figures_are_those_of_the_command_on_the_merged_model(both):
    ours, theirs, _, _ = both
    figures = {(one.task, one.metric): one.value for one in ours.measures}
    assert figures == {
        (task, metric): theirs[task][f"{metric},none"]
        for task, metrics in (("local_choice", ("acc", "acc_norm")), ("local_text", ("exact_match",)))
        for metric in metrics
    }


def test_each_question_has_the_score_that_the_command_logs(both):
    ours, _, samples, _ = both
    for measure in ours.measures:
        logged = {f"{measure.task} {one['doc_id']}": float(one[measure.metric]) for one in samples[measure.task]}
        assert dict(zip(measure.question_ids, measure.values, strict=True)) == logged
        assert fmean(measure.values) == pytest.approx(measure.value)
        assert not measure.is_part


def test_the_generated_answers_are_those_of_the_command(both):
    ours, _, samples, _ = both
    texts = {one.question_id: one.answer for one in ours.answers if one.task == "local_text"}
    assert texts == {f"local_text {one['doc_id']}": one["filtered_resps"][0] for one in samples["local_text"]}


def test_the_tasks_are_no_toys_that_any_model_gets_right_or_wrong(both):
    ours, _, _, base = both
    values = {one.task: one.value for one in ours.measures}
    assert 0 < values["local_choice"] < 1
    assert {one.answer for one in ours.answers} != {one.answer for one in base.answers}


def test_base_and_tuned_are_compared_question_by_question(both):
    ours, _, _, base = both
    before = {(one.task, one.name): one for one in base.measures}
    pairs = {}
    for measure in ours.measures:
        other = before[measure.task, measure.name]
        assert other.question_ids == measure.question_ids
        pairs[f"{measure.task} {measure.name}"] = Paired(other.values, measure.values)
    verdicts = judge_pairs(pairs)
    assert {verdict.num_questions for verdict in verdicts.values()} == {24}


def test_a_group_has_one_figure_over_all_its_questions(tuned, benchmarks):
    tasks = load_harness(HarnessRequest(("local_group",), folders=(benchmarks,)))
    found = run_harness(tasks, *tuned)
    (group,) = (one for one in found.measures if not one.is_part)
    assert (group.task, group.metric, group.num_questions) == ("local_group", "acc", 48)
    assert fmean(group.values) == pytest.approx(group.value)
    assert {one.task for one in found.measures if one.is_part} == {"local_choice", "local_choice_again"}


def test_a_file_is_a_task_too_and_progress_is_told(tuned, benchmarks, capfd):
    told = []
    tasks = load_harness(HarnessRequest((str(benchmarks / "choice.yaml"),), limit=5))
    found = run_harness(tasks, *tuned, on_request=told.append)
    assert {one.num_questions for one in found.measures} == {5}
    assert sum(told) == 15
    shown = capfd.readouterr().err
    assert not any(bar in shown for bar in ("Tokenizing", "Running", "Building"))


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("hellaswagg", ArgumentError, "did you mean hellaswag"),
        ("qqqqqqqqqqq", ArgumentError, "`lm-eval ls tasks` lists them"),
        ("nowhere.yaml", ArgumentError, "no such file"),
        ("humaneval", (ArgumentError, DataError), "humaneval"),
        ("hellaswag", DataError, "is not in the Hub's cache"),
    ],
)
def test_a_task_that_cannot_run_is_refused_in_one_line(name, error, text, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=text) as refused:
        load_harness(HarnessRequest((name,)))
    assert len(str(refused.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("output_type: multiple_choice", "output_type: [multiple"),
        ("choice.jsonl", "gone.jsonl"),
        ("output_type: multiple_choice", "output_type: nothing"),
        ("{{choices}}", "{{choices"),
        ("doc_to_target: label", "doc_to_target: lable"),
        ("Question: {{question}}", "Question: {{ question.missing.part }}"),
        ("test_split: test", "test_split: train"),
        ("metric: acc,", "metric: accuracies,"),
        ("task: local_choice", "tusk: local_choice"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tuned, benchmarks, tmp_path, old, new):
    text = (benchmarks / "choice.yaml").read_text("utf-8")
    assert old in text
    path = tmp_path / "choice.yaml"
    path.write_text(text.replace(old, new), "utf-8")
    with pytest.raises((ArgumentError, DataError)) as refused:
        run_harness(load_harness(HarnessRequest((str(path),), limit=2)), *tuned)
    assert len(str(refused.value).splitlines()) <= 2


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ArgumentError, match="pip install lm-eval"):
        load_harness(HarnessRequest(("mmlu",)))
