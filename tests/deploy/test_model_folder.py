import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.deploy.model_folder import save_model_folder
from tests.deploy.models import load_base


def saved_settings(model_folder, out, base_settings):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = load_base(model_folder)
    model.generation_config = base_settings
    save_model_folder(model, tokenizer, Renderer(tokenizer), out)
    return AutoModelForCausalLM.from_pretrained(out).generation_config


@pytest.mark.parametrize("eos_token_id", [None, 0, [0]])
def test_end_of_turn_joins_what_the_base_stops_at(llama_folder, tmp_path, eos_token_id):
    settings = saved_settings(llama_folder, tmp_path, GenerationConfig(eos_token_id=eos_token_id))
    assert settings.eos_token_id == ([3] if eos_token_id is None else [0, 3])


def test_sampling_values_without_do_sample_can_be_saved(llama_folder, tmp_path):
    settings = saved_settings(llama_folder, tmp_path, GenerationConfig(temperature=0.9, top_p=0.6))
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.9, 0.6)


def test_a_base_without_template_gets_the_one_that_training_used(llama_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.chat_template = None
    renderer = Renderer(tokenizer)
    save_model_folder(load_base(llama_folder), tokenizer, renderer, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == renderer.template
