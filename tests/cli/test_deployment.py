import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from qlora_cli.cli import chat, deployment
from qlora_cli.errors import ArgumentError, IdentityError, ResourceError
from tests.deploy.models import save_llama, save_run
from tests.model.foreign_adapters import ADAPTERS, change_config, save_adapter_of

pytestmark = pytest.mark.slow

SHORT = ["--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    return save_run(folder / "run", save_llama(folder / "base", tie_word_embeddings=False))


@pytest.fixture
def app():
    app = typer.Typer()
    deployment.register(app)
    chat.register(app)
    return app


def call(app, *arguments, stdin=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_merge_says_onto_what_how_well_and_where(app, run, tmp_path):
    out = call(app, "merge", run.path, "--out", tmp_path / "out", "--dtype", "float32").stdout
    assert out.startswith("merged onto the dequantized NF4 base, the weights that training saw\n")
    assert "mean KL" in out
    assert "top-1 agreement" in out
    assert str(tmp_path / "out") in out


def test_merge_json_holds_the_figures(app, run, tmp_path):
    merged = json.loads(call(app, "merge", run.path, "--out", tmp_path / "out", "--dtype", "bfloat16", "--json").stdout)
    assert merged["path"] == str(tmp_path / "out")
    assert 0 < merged["agreement"]["mean_kl"] < merged["max_kl"]


def test_export_prints_what_plain_transformers_makes_of_it(app, run, tmp_path):
    exported = json.loads(call(app, "export", run.path, "--out", tmp_path / "out", "--json").stdout)
    assert exported["agreement"]["num_positions"] > 0
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_export_knows_only_the_formats_it_writes(app, run, tmp_path):
    result = CliRunner().invoke(app, ["export", str(run.path), "--out", str(tmp_path), "--format", "onnx"])
    assert result.exit_code == 2


@pytest.mark.parametrize("format", ["gguf", "ollama", "mlx", "gptq"])
def test_an_engine_that_is_not_there_is_said_before_anything_is_loaded(app, run, tmp_path, monkeypatch, format):
    for name in ("GGUF", "MLX", "GPTQ"):
        monkeypatch.setenv(f"QLORA_{name}_PYTHON", str(tmp_path / "none"))
    with pytest.raises(ResourceError, match="is not installed") as raised:
        call(app, "export", run.path, "--out", tmp_path / "out", "--format", format)
    assert "qlora env" in raised.value.problems[0].hint
    assert not (tmp_path / "out").exists()


def test_generate_prints_the_same_streamed_and_whole(app, run):
    streamed = call(app, "generate", run.path, "--prompt", "hello", *SHORT).stdout
    whole = call(app, "generate", run.path, "--prompt", "hello", *SHORT, "--no-stream").stdout
    answer = json.loads(call(app, "generate", run.path, "--prompt", "hello", *SHORT, "--json").stdout)
    assert streamed == whole == answer["text"] + "\n"
    assert answer["computed_in"] == "float32 on cpu"


def test_generate_base_leaves_the_adapter_out(app, run):
    tuned = call(app, "generate", run.path, "--prompt", "hello", *SHORT).stdout
    assert call(app, "generate", run.path, "--prompt", "hello", *SHORT, "--base").stdout != tuned


def test_chat_answers_a_pipe(app, run):
    piped = call(app, "chat", run.path, "--temperature", "0", *SHORT, stdin="hello\n/exit\nmore\n").stdout
    assert piped == call(app, "generate", run.path, "--prompt", "hello", *SHORT).stdout


def test_chat_names_the_model_at_the_start(app, run):
    told = call(app, "chat", run.path, stdin="/exit\n").stderr
    assert f"adapter {run.path}/adapter on {run.path.parent}/base; /help lists the commands\n" in told
    base = call(app, "chat", run.path, "--base", stdin="/exit\n").stderr
    assert f"base {run.path.parent}/base, without the adapter; " in base


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--url", "http://127.0.0.1:1/v1", "--base"], "--base does not go with --url"),
        (["--model", "base"], "--model does not go with a model that is loaded here"),
    ],
)
def test_chat_refuses_what_does_not_go_together_before_anything_is_loaded(app, options, words):
    with pytest.raises(ArgumentError, match=words):
        call(app, "chat", *options)


def test_generate_says_on_stderr_that_an_answer_was_cut(app, run):
    cut = call(app, "generate", run.path, "--prompt", "hello", "--max-new-tokens", "1")
    assert cut.stderr.endswith("cut after 1 tokens; `--max-new-tokens 2` lets it continue\n")
    assert "cut" not in cut.stdout


def test_generate_names_what_a_folder_lacks(app, tmp_path):
    with pytest.raises(ArgumentError, match="not a run directory, an adapter folder or a model folder"):
        call(app, "generate", tmp_path, "--prompt", "hello")


def test_declaring_the_commands_imports_no_torch():
    check = "import sys; import qlora_cli.cli.deployment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_an_adapter_made_elsewhere_is_put_on_the_base_that_is_named(app, tiny_base, tmp_path):
    save_adapter_of(tiny_base, ADAPTERS["IA3"], tmp_path / "adapter")
    change_config(tmp_path / "adapter", base_model_name_or_path="/root/models/base")
    with pytest.raises(IdentityError, match="it has moved") as caught:
        call(app, "generate", tmp_path / "adapter", "--prompt", "Hello", *SHORT)
    assert "--base-model FOLDER" in caught.value.problems[0].hint
    named = ("--base-model", tiny_base, "--set", "model.dtype=float32", *SHORT, "--json")
    answer = json.loads(call(app, "generate", tmp_path / "adapter", "--prompt", "Hello", *named).stdout)
    assert answer["computed_in"] == "float32 on cpu"


@pytest.mark.parametrize("command", ["merge", "export", "generate", "chat"])
def test_every_command_takes_the_options_about_the_base(app, run, command, tmp_path):
    given = {"merge": [], "export": ["--out", tmp_path / "out"], "generate": ["--prompt", "Hi"], "chat": []}[command]
    with pytest.raises(IdentityError, match="stored as nf4, not int8"):
        call(app, command, run.path, *given, "--quantization", "int8")
    with pytest.raises(ArgumentError, match=r"--set lora\.r=3"):
        call(app, command, run.path, *given, "--set", "lora.r=3")
    with pytest.raises(IdentityError, match="it has moved"):
        call(app, command, run.path, *given, "--base-model", tmp_path / "nowhere")
