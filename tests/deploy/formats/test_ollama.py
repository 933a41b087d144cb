"""ollama's Modelfile: its template is that of training on conversations, or there is none."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.deploy.formats.ollama import CONVERSATIONS, modelfile, plain_template
from tests.data.render.templates import TEMPLATES
from tests.tiny_models import byte_tokenizer


def render_with(template):
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = template
    return lambda messages, is_asked: tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=is_asked, tokenize=False
    )


def test_a_plain_template_is_found_and_prints_twenty_conversations_as_training_saw_them():
    render = render_with(TEMPLATES["chatml"])
    found = plain_template(render)
    assert found.before["user"] == "<|im_start|>user\n"
    assert len(CONVERSATIONS) == 20
    assert all(found.text(*one) == render(*one) for one in CONVERSATIONS)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}",
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %}; {% endif %}{% endfor %}",
    ],
    ids=["trims", "counts", "no system", "last is other"],
)
def test_a_template_that_does_more_is_not_claimed(template):
    assert plain_template(render_with(template)) is None


def test_the_modelfile_names_file_template_stop_and_context():
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = TEMPLATES["chatml"]
    text = modelfile("model-q4_k_m.gguf", tokenizer, 2048)
    assert text.startswith("FROM ./model-q4_k_m.gguf\nTEMPLATE ")
    [end] = [tokenizer.decode([one]) for one in Renderer(tokenizer).end_of_turn_ids]
    assert f'PARAMETER stop "{end}"' in text
    assert "PARAMETER num_ctx 2048" in text


GO = """package main
import ("os"; "encoding/json"; "text/template")
type M struct { Role, Content string }
func main() {
    text, _ := os.ReadFile(os.Args[1]); data, _ := os.ReadFile(os.Args[2])
    var v struct { Messages []M }
    json.Unmarshal(data, &v)
    template.Must(template.New("t").Parse(string(text))).Execute(os.Stdout, v)
}
"""


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go here")
def test_go_prints_what_the_template_of_training_prints(tmp_path):
    import json

    render = render_with(TEMPLATES["chatml"])
    found = plain_template(render)
    (tmp_path / "main.go").write_text(GO)
    (tmp_path / "t.txt").write_text(found.in_go())
    for messages, is_asked in CONVERSATIONS:
        if is_asked:
            fields = [{"Role": one["role"], "Content": one["content"]} for one in messages]
            (tmp_path / "v.json").write_text(json.dumps({"Messages": fields}))
            ran = subprocess.run(
                ["go", "run", "main.go", "t.txt", "v.json"], cwd=tmp_path, capture_output=True, text=True, check=True
            )
            assert found.beginning + ran.stdout == render(messages, True)
