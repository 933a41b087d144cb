"""Bases that the tests of merging stand on."""

from __future__ import annotations

import pytest

from tests.deploy.models import save_gpt2, save_llama


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """An untrained Llama with an untied head."""
    return save_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tied_llama_folder(tmp_path_factory):
    """An untrained Llama whose embedding is its head."""
    return save_llama(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory):
    """An untrained GPT-2: its linear layers are `Conv1D`."""
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))
