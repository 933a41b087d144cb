"""Adapters that this project trained, served by vLLM with the command that it makes: `make test-engines`.

The yardstick is base and adapter in this process, in float32: the same tokens, greedily, from the same prompt.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from qlora_cli import train
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.model.tuned import load_tuned
from qlora_cli.serve.generation import SamplingOptions
from qlora_cli.serve.remote import RemoteSession
from tests.model.foreign_bases import w4a16_base

VLLM_PYTHON = os.environ.get("QLORA_VLLM_PYTHON")
"""Interpreter of an environment with vLLM and the `openai` client, which vLLM brings."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM_PYTHON, reason="needs QLORA_VLLM_PYTHON, which `make test-engines` sets"),
]

ROOT = Path(__file__).resolve().parents[2]
START = (
    "import sys; from pathlib import Path; from qlora_cli.model.tuned import find_tuned; "
    "from qlora_cli.serve.vllm import serve_with_vllm; "
    "pairs = [word.split('=') for word in sys.argv[3:]]; "
    "sources = {name: find_tuned(Path(path)) for name, path in pairs}; "
    "serve_with_vllm(sources, '127.0.0.1', int(sys.argv[1]), 'QLORA_TEST_KEY', sys.argv[2] == 'print')"
)
CLIENT = """
import json, sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key=sys.argv[2])
asked = json.load(sys.stdin)
said = {}
for name in [model.id for model in client.models.list()]:
    said[name] = [
        client.completions.create(model=name, prompt=ids, max_tokens=12, temperature=0, logprobs=0).choices[0].text
        for ids in asked["prompts"]
    ]
    chats = [
        client.chat.completions.create(model=name, messages=turns, max_tokens=12, temperature=0)
        for turns in asked["messages"]
    ]
    said[name + " chat"] = [chat.choices[0].message.content for chat in chats]
print(json.dumps(said))
"""
QUESTIONS = ["My parcel has not arrived.", "I want my money back", "The app crashes é", "Refund? 3x"]
MESSAGES = [[{"role": "user", "content": text}] for text in QUESTIONS]
MESSAGES[1] = [{"role": "system", "content": "Be short."}, *MESSAGES[1], {"role": "assistant", "content": "Why?"}]
MESSAGES[1].append({"role": "user", "content": "It broke."})


@pytest.fixture(scope="module")
def runs(trained_base, tmp_path_factory):
    """Two runs on one NF4 base: rank 8, and rank 12 with rsLoRA, of which vLLM's list has no entry."""
    folder, rows = tmp_path_factory.mktemp("runs"), ROOT / "recipes" / "data" / "tickets_train.jsonl"
    (trained_base / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 3.0, "repetition_penalty": 5.0, "eos_token_id": 0})
    )
    made = {}
    for name, lora in {"plain": {"r": 8}, "rs": {"r": 12, "use_rslora": True, "lora_alpha": 20}}.items():
        recipe = {
            "name": name,
            "model": {"base_model": str(trained_base), "dtype": "float32"},
            "quantization": {"quant_type": "nf4"},
            "lora": {"target_modules": "all-linear", **lora},
            "data": {"train": str(rows), "max_length": 256},
            "training": {"max_steps": 6, "learning_rate": 0.02, "per_device_train_batch_size": 4},
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        made[name] = Path(train(path, run_dir=folder / name).run)
    return made


def wait_until_up(process, port, log):
    for _ in range(600):
        if process.poll() is not None:
            raise AssertionError(log.read_text()[-4000:])
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
        except OSError:
            time.sleep(1)
        else:
            return
    raise AssertionError(log.read_text()[-4000:])


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(port, how, runs, **options):
    pairs = [f"{name}={path}" for name, path in runs.items()]
    variables = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "QLORA_TEST_KEY": "sesame", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", START, str(port), how, *pairs], env=variables, cwd=ROOT, text=True, **options
    )


@contextmanager
def serving(runs, tmp_path_factory):
    """The server's URL; it is ended by SIGINT, which reaches vLLM itself."""
    port, log = free_port(), tmp_path_factory.mktemp("log") / "log.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        with log.open("w") as file:
            process = started(port, "run", runs, stdout=file, stderr=subprocess.STDOUT)
        try:
            wait_until_up(process, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.fixture(scope="module")
def server(runs, tmp_path_factory):
    with serving(runs, tmp_path_factory) as url:
        yield url


def greedy(tuned, ids, end_ids, num_tokens=12):
    made = []
    while len(made) < num_tokens and not (made and made[-1] in end_ids):
        with torch.no_grad():
            made.append(int(tuned.model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax()))
    return [token for token in made if token not in end_ids]


def answers_here(runs):
    """Name -> the texts that base and adapter give here, the base once more with the adapter switched off; prompts."""
    said, prompts = {}, []
    for name, path in runs.items():
        tuned = load_tuned(path)
        renderer = Renderer(tuned.tokenizer)
        prompts = [renderer.prompt_ids(messages) for messages in MESSAGES]

        def texts(tuned=tuned, renderer=renderer, prompts=prompts):
            made = [greedy(tuned, ids, renderer.end_of_turn_ids) for ids in prompts]
            return [tuned.tokenizer.decode(ids, skip_special_tokens=True) for ids in made]

        said[name] = texts()
        with tuned.model.disable_adapter():
            said["base"] = texts()
    return said, prompts


@pytest.fixture(scope="module")
def expected(runs):
    return answers_here(runs)


def answers_of(url, prompts):
    """Name -> the texts that the server gives to prompts and to chats, by vLLM's own client."""
    asked = json.dumps({"prompts": prompts, "messages": MESSAGES})
    done = subprocess.run(
        [VLLM_PYTHON, "-c", CLIENT, f"{url}/v1", "sesame"], input=asked, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_official_client_gets_the_trained_answers_of_each_adapter_and_of_the_base(server, expected):
    texts, prompts = expected
    assert len({tuple(each) for each in texts.values()}) == 3
    said = answers_of(server, prompts)
    assert {name: said[name] for name in texts} == texts
    assert {name: said[f"{name} chat"] for name in texts} == texts
    assert set(said) == {*texts, *(f"{name} chat" for name in texts)}


def test_an_adapter_on_w4a16_is_served_on_the_very_folder_that_was_named(trained_base, tmp_path_factory):
    """Of rank 32 on all linear layers, which vLLM was reported to compute wrongly on such a base.

    Its kernels for 4-bit integers compute in 16 bits; on CPUs they need AVX512.
    """
    folder = tmp_path_factory.mktemp("w4a16")
    w4a16_base(trained_base, folder / "base")
    recipe = {
        "name": "w4a16",
        "model": {"base_model": str(folder / "base"), "dtype": "bfloat16"},
        "lora": {"target_modules": "all-linear", "r": 32},
        "data": {"train": str(ROOT / "recipes" / "data" / "tickets_train.jsonl"), "max_length": 256},
        "training": {"max_steps": 6, "learning_rate": 0.02, "per_device_train_batch_size": 4},
    }
    path = folder / "w4a16.yaml"
    path.write_text(yaml.safe_dump(recipe))
    runs = {"w4a16": Path(train(path, run_dir=folder / "run").run)}
    texts, prompts = answers_here(runs)
    assert texts["w4a16"] != texts["base"]
    printed = started(1, "print", runs, stdout=subprocess.PIPE).communicate()[0]
    assert f" {folder / 'base'} " in printed
    assert " --dtype bfloat16 " in printed
    with serving(runs, tmp_path_factory) as url:
        said = answers_of(url, prompts)
    assert {name: said[name] for name in texts} == texts


def test_a_chat_is_the_prefix_of_a_trained_row(server, expected):
    for messages, ids in zip(MESSAGES, expected[1], strict=True):
        body = json.dumps({"model": "plain", "messages": messages}).encode()
        request = urllib.request.Request(
            f"{server}/tokenize", body, {"Content-Type": "application/json", "Authorization": "Bearer sesame"}
        )
        with urllib.request.urlopen(request) as response:
            assert json.load(response)["tokens"] == ids


def test_qlora_chat_talks_with_it_and_needs_the_key(server, expected, monkeypatch):
    options = SamplingOptions(max_new_tokens=12)
    with pytest.raises(Exception, match="status 401"):
        RemoteSession(f"{server}/v1", None, options)
    monkeypatch.setenv("QLORA_CHAT_API_KEY", "sesame")
    session, pieces = RemoteSession(f"{server}/v1", "rs", options), []
    assert session.ask(QUESTIONS[0], pieces.append).text == "".join(pieces) == expected[0]["rs"][0]
    with pytest.raises(Exception, match="status 404"):
        RemoteSession(f"{server}/v1", "nobody", options).ask("hello")


def test_the_base_is_written_once_and_printed_commands_say_what_is_missing(server, runs):
    printed = started(1, "print", runs, stdout=subprocess.PIPE).communicate()[0]
    assert printed.count("\n") == 1
    assert printed.startswith('VLLM_API_KEY="$QLORA_TEST_KEY" ')
    assert "sesame" not in printed
    assert re.search(r"--max-lora-rank 16 ", printed)


def test_a_fault_of_vllm_comes_back_as_its_exit_code(server, runs):
    taken = int(server.rpartition(":")[2])
    process = started(taken, "run", runs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert "in use" in process.communicate()[1]
    assert process.returncode not in (0, None)
