"""What counts as a secret, what does not, and what stands in its place."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import yaml

from qlora_cli.secrets import MIN_VALUE_CHARS, SHAPES, find_secret, known_values, redacted, redacted_values
from tests.reliability.harness.leaks import SECRETS, body, told, written


@pytest.fixture
def variables(monkeypatch, tmp_path) -> Iterator[pytest.MonkeyPatch]:
    """An environment without login files, read again by `known_values`."""
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    known_values.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    known_values.cache_clear()


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("around", ["{}", "({})", "a\n{}\nb", '{{"key": "{}"}}', "at {}, {} and {}."])
def test_a_secret_is_found_and_taken_out_whole(kind, around):
    text = around.format(*[written(kind)] * 3)
    assert find_secret(text)
    assert told(redacted(text), SECRETS[kind][1]) == []
    assert "(secret " in redacted(text)
    assert find_secret(redacted(text)) == ""


def test_a_private_key_is_found_however_its_line_ends_are_written():
    key = written("private key")
    for text in (key, repr(key), json.dumps(key), key.replace("\n", "\\x0a"), key.replace("\n", "\r\n"), key[:150]):
        assert redacted(text).strip("'\"") == "(secret private key)"


@pytest.mark.parametrize("kind", SECRETS)
def test_what_stands_around_a_secret_stays(kind):
    words = f"before {written(kind)} <b>after</b>"
    assert redacted(words).startswith("before ")
    assert redacted(words).endswith(" <b>after</b>")


@pytest.mark.parametrize("kind", SECRETS)
def test_json_and_yaml_stay_what_they_are(kind):
    value = {"a": written(kind), "b": ["x", f'say "{written(kind)}"\n\\ {written(kind)}'], "c": 1}
    assert redacted_values(value)["c"] == 1
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2)):
        assert json.loads(redacted(text))["c"] == 1
    assert yaml.safe_load(redacted(yaml.safe_dump(value, width=1000)))["c"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "b4f3f5c2d0a94b8cb0d7f0d8a3f1c2e4d5a6b7c8",  # a commit
        "meta-llama/Llama-3.1-8B-Instruct",
        "HuggingFaceTB/SmolLM2-135M",
        "~/.cache/huggingface/hub/models--gpt2/snapshots/607a30d783dfa663caf39e06633721c8d4cfcd7e/model.safetensors",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "a risk-averse-and-task-specific-baseline-with-disk-based-caches",
        "sk-learn-style-estimators-are-supported",
        "hf_token is not set; hf_transfer_is_switched_off_for_this_download",
        "https://huggingface.co/api/models/gpt2?expand=downloads&sort=likes&token=none",
        "https://user@example.com:8080/a:b@c",
        "postgresql://user:$PASSWORD@host and https://user:<password>@host",
        "the bearer responsibilities of a basic Authentication",
        "eos_token=<|endoftext|>, pad_token=None, tokens_per_second=1234567890123456",
        "5f70bf18a086007016e948b04aed3b82103a36be9a7c8ac8a3f1c2e4d5a6b7c8",  # SHA-256
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
        "eyJhIjogMX0=",  # {"a": 1} in base64
        "AKIA is how the ids of AWS begin, glpat- those of GitLab, xoxb- those of Slack, ghp_ those of GitHub",
        "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----",
        "TOKENIZERS_PARALLELISM=false WANDB_PROJECT=sums --set training.learning_rate=2e-4",
        "",
    ],
)
def test_ordinary_text_is_left_alone(variables, text):
    assert find_secret(text) == ""
    assert redacted(text) == text


def test_the_value_of_a_variable_whose_name_says_so_is_a_secret(variables):
    key = body(40, "0123456789abcdef")
    assert redacted(key) == key
    variables.setenv("WANDB_API_KEY", key)
    known_values.cache_clear()
    assert find_secret(f"key {key}") == "value of WANDB_API_KEY"
    assert redacted(f"key {key}!") == "key (secret value of WANDB_API_KEY)!"


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "OPENAI_API_KEY", "aws_secret_access_key", "PGPASSWORD", "DB_PASSWORD_PROD", "SOME_CREDENTIALS"],
)
def test_names_of_secret_variables(variables, name):
    variables.setenv(name, body(24))
    known_values.cache_clear()
    assert find_secret(body(24)) == f"value of {name}"


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "KEY_REPEAT", "WANDB_PROJECT", "PASSAGE", "SECRETARY"]
)
def test_names_of_other_variables(variables, name):
    variables.setenv(name, body(24))
    known_values.cache_clear()
    assert find_secret(body(24)) == ""


def test_a_short_value_or_a_path_to_where_a_secret_lies_is_none(variables, tmp_path):
    variables.setenv("HF_TOKEN", "x" * (MIN_VALUE_CHARS - 1))
    variables.setenv("API_TOKEN", str(tmp_path))
    known_values.cache_clear()
    assert redacted(f"{'x' * 20} {tmp_path}") == f"{'x' * 20} {tmp_path}"


def test_what_the_login_commands_stored_is_a_secret(variables, tmp_path):
    stored, password = body(30), body(40, "0123456789abcdef")
    (tmp_path / "token").write_text(f"{stored}\n")
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {password}\n")
    known_values.cache_clear()
    assert redacted(f"{stored} {password}") == " ".join(["(secret token of a login file)"] * 2)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"  \n"])
def test_a_login_file_that_holds_nothing_is_no_fault(variables, tmp_path, content):
    for name in ("token", "netrc"):
        (tmp_path / name).write_bytes(content)
    known_values.cache_clear()
    assert redacted("a text") == "a text"


@pytest.mark.parametrize("mark", [mark for shape in SHAPES for mark in shape.marks])
@pytest.mark.parametrize("behind", ["", "-----BEGIN ", "a", "a.", "A "])
def test_a_text_made_to_take_long_is_searched_at_once(mark, behind):
    """A search whose time grows as the square of the text would take hours."""
    text = (mark + behind) * (200_000 // len(mark + behind))
    started = time.process_time()
    redacted(text)
    find_secret(text)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("around", ["https://", "&sig=&sig=", "access_token=", "bearer%20", "?token=", "://a:"])
def test_a_url_made_to_take_long_is_searched_at_once(around):
    started = time.process_time()
    redacted(around * 100_000)
    assert time.process_time() - started < 5
