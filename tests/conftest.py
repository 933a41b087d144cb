"""Small real things that many tests stand on: a random Llama with a byte-level tokenizer, and chat data."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as the command line has it

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qlora_cli.model.tiny import TinyOptions, make_tiny_base
from tests.reliability.harness.forkserver import FOLDER_VARIABLE
from tests.slowness import (  # noqa: F401 - hooks of pytest
    pytest_ignore_collect,
    pytest_itemcollected,
    pytest_runtest_call,
    pytest_runtest_setup,
)
from tests.turns import take_every

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

MEMORY_DISK_BYTES = 8 * 2**30
"""What a disk in memory must have free for the tests to write there; they take under 2 GB at once."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden again")


def pytest_configure(config: pytest.Config) -> None:
    """Tests that are not marked `gpu` run on the CPU, also where there is a GPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Where the tests were started in the background or by nohup, signals are ignored, and programs would inherit that.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit what the process that starts them has
        _write_into_memory()
        # Tests find what other tests prepared, also in the other worker, and never what the developer did.
        cache = tempfile.TemporaryDirectory(prefix="qlora-tests-")
        os.environ["QLORA_CACHE"] = cache.name
        shared = tempfile.TemporaryDirectory(prefix="qlora-shared-")
        os.environ[FOLDER_VARIABLE] = shared.name
        config.add_cleanup(shared.cleanup)
        config.add_cleanup(cache.cleanup)


def _write_into_memory() -> None:
    """Put temporary files on a disk in memory where there is one of size, unless TMPDIR names a place.

    Training writes and flushes many small files: on a disk a tiny run took twice as long.
    """
    memory = Path("/dev/shm")
    if "TMPDIR" not in os.environ and memory.is_dir() and shutil.disk_usage(memory).free >= MEMORY_DISK_BYTES:
        os.environ["TMPDIR"] = str(memory)
        tempfile.tempdir = None


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave long versions, marked `torture`, out unless `-m` names them."""
    take_every(items)
    if "torture" in (config.option.markexpr or ""):
        return
    long = [item for item in items if item.get_closest_marker("torture")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_collection_finish() -> None:
    set_aside()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or nextitem.path != item.path:
        set_aside()


def set_aside() -> None:
    """Leave what is imported and collected out of garbage collections; training makes one each time.

    With the objects of all tests, 2.6 million, each would take 2.2 s, longer than the training.
    """
    gc.collect()
    gc.freeze()


def byte_tokenizer(*special_tokens: str, eos_token: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte and the special tokens named, ChatML as its template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos_token, pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special_tokens]})
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_llama(vocabulary: int, *, seed: int = 0) -> LlamaForCausalLM:
    """Two layers of random weights; dimensions are multiples of 64, the block of NF4."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `from_pretrained` loads: tiny random Llama in float32, byte-level tokenizer, ChatML."""
    folder = tmp_path_factory.mktemp("base") / "tiny-base"
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base after 100 steps on the demo's tickets (4 s): its activations have the outliers that training makes.

    Random weights have none, and what depends on outliers, such as LLM.int8(), goes unseen on them.
    """
    folder = tmp_path_factory.mktemp("trained") / "trained-base"
    corpus = Path(__file__).parents[1] / "recipes" / "data" / "tickets_train.jsonl"
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 512}
    make_tiny_base(folder, TinyOptions((corpus,), **sizes, steps=100, batch_size=4, window_length=64))
    return folder


@pytest.fixture(scope="session")
def chat_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 short sums as a JSONL file in alpaca format."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = ({"instruction": f"add {n} and {n + 1}", "output": str(2 * n + 1)} for n in range(48))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of prepared data that holds nothing yet."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("QLORA_CACHE", str(folder))
    return folder
