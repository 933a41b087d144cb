"""A tuned model to speak with."""

from __future__ import annotations

import pytest

from qlora_cli.model.tuned import load_tuned
from tests.deploy.models import save_llama, save_run


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)


@pytest.fixture(scope="session")
def run(tmp_path_factory, base_folder):
    return save_run(tmp_path_factory.mktemp("run"), base_folder)


@pytest.fixture
def tuned(run):
    return load_tuned(run.path)
