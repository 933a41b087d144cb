"""A skeleton has no memory behind it, and leaves the configuration as it was."""

from __future__ import annotations

import transformers as hf

from qlora_cli.model.towers.skeleton import bare_skeleton


def test_a_skeleton_is_on_the_meta_device_alone():
    config = hf.LlamaConfig(num_hidden_layers=1)
    before = config.to_dict()
    skeleton = bare_skeleton(hf.AutoModelForCausalLM, config)
    assert {tensor.device.type for tensor in (*skeleton.parameters(), *skeleton.buffers())} == {"meta"}
    assert not skeleton.training
    assert config.to_dict() == before
