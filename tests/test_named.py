"""What docstrings, comments and pages name is there: files, folders, modules, functions and keys.

A name counts where it stands in back-ticks, a path of a Python file anywhere. It is held against the tree and the code
of the package; names of other projects are imported, or stand in `ELSEWHERE`.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.sources import ROOT, nodes_of, python_files, tree_of

OURS = ("qlora_cli", "tests", "benchmarks", "docs")
PYTHON = sorted(python_files(*OURS))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (*OURS, "configs", "recipes", "docker", ".ci")
TREE = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
TREE |= {path.name for path in ROOT.iterdir()}

MADE = {
    "runs",
    "adapter",
    "residual",
    "integers",
    "eval",
    "merged",
    "checkpoints",
    "calibration",
    "plans",
    "data",
    ".earlier",
}
"""Folders that a run or a command makes."""

EXAMPLES = {"src/a.py", "small.yaml", "rows.yaml", "recipe.yaml", "new.yaml", "chat.yaml"}
"""Files that a test or a reader makes."""

ELSEWHERE = {
    "trl/models/activation_offloading.py",
    *("sft_trainer.py", "trl/kernels/chunked_logprob.py", "sdp_utils.cpp"),
    *("OffloadActivations", "mha_bwd", "workspace_elements_gq"),  # trl, flash-attention, ATen
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),  # transformers
    *("language_model", "context_fn", "bos_token", "to_json", "save_to_disk", "pydoc_data", "MinHashLSH"),
    *("WANDB_API_KEY", "PGPASSWORD", "hf_xet"),
    *("vllm/lora/peft_helper.py", "vllm/lora/utils.py", "vllm/config/lora.py"),
    *(
        "PEFTHelper",
        "parse_fine_tuned_lora_name",
        "is_base_embedding_weights",
        "MaxLoRARanks",
        "cpu_gemm_wna16",
    ),  # vLLM
}
"""Names in other projects that no import leads to."""


def prose_of(path: Path) -> Iterator[str]:
    """Docstrings, texts under fields, and comments of a Python file; the whole of another one."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        yield text
        return
    for node in nodes_of(path):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@cache
def words_of(path: Path) -> frozenset[str]:
    """Every name of a file's code, every word of its texts, and its own name."""
    words = set(path.relative_to(ROOT).with_suffix("").parts)
    bare = {id(node.value) for node in nodes_of(path) if isinstance(node, ast.Expr)}
    for node in nodes_of(path):
        for field in ("id", "attr", "arg", "name", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                words |= set(value.split("."))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            words |= set(re.findall(r"\w+", node.value))
    return frozenset(words)


@cache
def words_in(folder: Path) -> frozenset[str]:
    """Those of all Python files in a folder of the repository, but for this one."""
    files = [path for path in PYTHON if path.is_relative_to(folder) and path != Path(__file__).resolve()]
    return frozenset[str]().union(*(words_of(path) for path in files))


def words_beside(path: Path) -> frozenset[str]:
    return words_in(ROOT / path.relative_to(ROOT).parts[0])


def is_there(path: str) -> bool:
    """Whether a file or folder is in the tree, named whole, or from its room on."""
    name = path.rstrip("/")
    return name in TREE or any(known.endswith(f"/{name}") for known in TREE)


def is_imported(name: str) -> bool:
    """Whether a dotted name is one of an installed library."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


FILE = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|cpp|jinja|svg|toml|yaml)")
FOLDER = re.compile(r"(?:[\w.]+/)+")
DOTTED = re.compile(r"[a-z_]\w*(?:\.\w+)+(?:\(\))?")
CALL = re.compile(r"([A-Za-z_][\w.]*)\(.*\)")
NAME = re.compile(r"[A-Za-z]+_\w+|[A-Z][a-z]+[A-Z]\w*|[A-Z_]{3,}")
DATA = re.compile(r".*\.(?:json|jsonl|txt|md|safetensors|parquet|csv|arrow|sh|bin|yml|lock)")


def faults_of(quoted: str, own: frozenset[str] = frozenset()) -> str:
    """What is wrong with a text in back-ticks; empty where it names nothing, or something that is there.

    Args:
        quoted: the text.
        own: names of the file that it stands in, beside those of the package.
    """
    if quoted in ELSEWHERE or quoted.rstrip("/").partition("/")[0] in MADE or quoted in EXAMPLES:
        return ""
    if FILE.fullmatch(quoted) or (FOLDER.fullmatch(quoted) and not quoted.startswith(".")):
        return "" if is_there(quoted) else "no such file or folder"
    call = CALL.fullmatch(quoted)
    name = call.group(1) if call else quoted
    if DATA.fullmatch(name) or not (call or DOTTED.fullmatch(name) or NAME.fullmatch(name)):
        return ""
    last = name.removesuffix("()").rpartition(".")[2]
    is_ours = last in own or last in words_in(ROOT / "qlora_cli")
    return "" if is_ours or is_imported(name.removesuffix("()")) else "no such name"


@pytest.mark.parametrize("path", [*PYTHON, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_prose_names_is_there(path):
    faults = []
    own = words_of(path) | words_beside(path) if path.suffix == ".py" else words_in(ROOT / "tests")
    for text in prose_of(path):
        quoted = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
        faults += [f"{one}: {fault}" for one in quoted if (fault := faults_of(one, own))]
        paths = set(re.findall(r"(?<![\w/.<>*-])(?:[a-z_]+/)+[a-z_]+\.py\b", text)) - ELSEWHERE - EXAMPLES
        faults += [f"{one}: no such file" for one in sorted(paths) if not is_there(one)]
    assert faults == []


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_of_ours_leads_somewhere(path):
    """Also those inside functions, which nothing runs but a GPU or a command."""
    lost = []
    for node in nodes_of(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qlora_cli"):
            file = (ROOT / node.module.replace(".", "/")).with_suffix(".py")
            for alias in node.names:
                is_module = (ROOT / f"{node.module}.{alias.name}".replace(".", "/")).with_suffix(".py").is_file()
                is_package = file.with_suffix("").is_dir()
                is_defined = file.is_file() and alias.name in bound_in(file)
                if not (is_module or is_defined or is_package):
                    lost.append(f"{node.module}.{alias.name}")
    assert lost == []


@cache
def bound_in(file: Path) -> frozenset[str]:
    """Names that a file defines or imports at its top."""
    names = set()
    for node in tree_of(file).body:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names.add(part.id)
            elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(part.name)
            elif isinstance(part, ast.alias):
                names.add(part.asname or part.name)
    return frozenset(names)


@pytest.mark.parametrize(
    "name",
    [
        "plan/workspaces.py",
        "initial_values",
        "deploy/nothing/",
        "qlora_cli.plan.nothing_of_it",
        "torch.nothing_of_it",
        "nothing_of_it()",
    ],
)
def test_what_is_not_there_is_found(name):
    assert faults_of(name)


@pytest.mark.parametrize(
    "name", ["plan/trace/live_memory.py", "find_tuned", "deploy/", "torch.amp.GradScaler", "load_recipe(x)"]
)
def test_what_is_there_is_not_found(name):
    assert faults_of(name) == ""
