"""Adapters of every method that PEFT loads answer as they do alone, next to a plain one where PEFT allows that."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_cli.errors import IdentityError, QloraError
from qlora_cli.model.tuned import load_tuned
from tests.deploy.models import SIZES
from tests.model.foreign_adapters import ADAPTERS, LORAS, lora, save_adapter_of
from tests.serve.engine.asking import (
    Alone,
    assert_as_alone,
    find,
    hear,
    mixed_load,
    request,
    save_model,
    serving,
)

SERVED_ALONE = {
    "bias all": "trained with biases",
    "bias lora_only": "trained with biases",
    "layer_replication": "takes a part out|repeats layers",
    "target_parameters": "cannot stand beside",
    "trainable_token_indices": "single rows",
    "trainable_token_indices of two": "single rows",
    "init pissa": "init|pissa",
    "init olora": "olora",
    "init mica": "mica",
}
"""LoRA whose base cannot be shared, and words of the reason."""

RUN_APART = {
    "dora",
    "qalora",
    "modules_to_save embeddings",
    "modules_to_save norm",
}
"""LoRA that PEFT's mixed batches do not compute, or not as it computes them alone."""


BEFORE_THE_PROMPT = ("PromptTuning", "PromptEncoder", "PrefixTuning", "CPT", "AdaptionPrompt")
"""Methods with virtual tokens."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True))
    return save_model(tmp_path_factory.mktemp("base"), model)


@pytest.mark.every(4)
@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_answers_as_alone(tmp_path, base, method):
    folder = save_adapter_of(base, ADAPTERS[method], tmp_path / "one", std=0.1)
    try:
        load_tuned(find(folder))
    except QloraError as refusal:
        pytest.skip(f"refused by every command: {refusal.problems[0].text}")
    folders = {"one": folder}
    with serving(folders) as loaded:
        assert_as_alone(loaded, Alone(folders), mixed_load(loaded.engine.names)[:6])


@pytest.mark.every(4)
@pytest.mark.parametrize("method", LORAS)
def test_lora_of_every_kind_answers_next_to_plain_ones(tmp_path, base, method):
    folders = {
        "plain": save_adapter_of(base, lora(target_modules="all-linear"), tmp_path / "plain", std=0.1),
        "odd": save_adapter_of(base, LORAS[method], tmp_path / "odd", std=0.1),
        "other": save_adapter_of(base, lora(target_modules=["o_proj"]), tmp_path / "other", std=0.1),
    }
    if method in SERVED_ALONE:
        with pytest.raises(IdentityError, match=SERVED_ALONE[method]), serving(folders):
            pass
        return
    with serving(folders) as loaded:
        assert loaded.num_together == (3 if method in RUN_APART else 4)
        assert_as_alone(loaded, Alone(folders), mixed_load(loaded.engine.names))


@pytest.mark.parametrize("method", BEFORE_THE_PROMPT)
def test_virtual_tokens_stand_before_the_prompt_as_they_did_in_training(tmp_path, base, method):
    folder = save_adapter_of(base, ADAPTERS[method], tmp_path / "one", std=0.1)
    try:
        tuned = load_tuned(find(folder))
    except QloraError as refusal:
        pytest.skip(f"refused by every command: {refusal.problems[0].text}")
    with serving({"one": folder}) as loaded:
        asked = request(loaded, "one", 4, max_new_tokens=6)
        heard = hear(loaded.engine.submit(asked))
    ids = list(asked.prompt_ids)
    for token in heard.tokens:
        with torch.no_grad():
            logits = tuned.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        assert int(logits.argmax()) == token.token_id
        ids.append(token.token_id)
