"""Chat templates are programs that come with a model; they run in a sandbox and reach nothing."""

from __future__ import annotations

import pytest

CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
MAKE_CANARY = "popen('touch CANARY').read()"

REFUSED = {
    "globals of a class": f"{{{{ cycler.__init__.__globals__.os.{MAKE_CANARY} }}}}",
    "globals of a function": f"{{{{ lipsum.__globals__['os'].{MAKE_CANARY} }}}}",
    "globals of a helper": f"{{{{ raise_exception.__globals__['os'].{MAKE_CANARY} }}}}",
    "globals of the clock": f"{{{{ strftime_now.__globals__['os'].{MAKE_CANARY} }}}}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__()[0]('x') }}",
    "builtins": "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "attributes by name": "{{ (messages|attr('__class__')).__mro__ }}",
    "attributes by map": "{{ ([messages]|map(attribute='__class__')|first).__mro__ }}",
    "attributes by item": "{{ messages['__class__']['__mro__'] }}",
    "inclusion": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('touch CANARY') }}",
    "inheritance": "{% extends '/etc/passwd' %}",
    "changed messages": "{{ messages.append(messages[0]) }}",
    "emptied message": "{{ messages[0].clear() }}",
    "huge range": "{% for i in range(999999999) %}x{% endfor %}",
    "division by zero": "{{ 1 / 0 }}",
    "unknown filter": "{{ messages|evil }}",
    "generator's frame": "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "code object": "{{ raise_exception.__code__.co_consts[0] }}",
}
HARMLESS = {
    "format of an attribute": "{{ '{0.__class__}'.format(1) }}",
    "percent format": "{{ '%s' % ''.__doc__ }}",
    "attribute by filter": "{{ ''|attr('__class__') }}",
}


@pytest.mark.parametrize("template", REFUSED.values(), ids=REFUSED.keys())
def test_a_template_that_reaches_out_of_its_sandbox_is_refused(place, template):
    text = template.replace("CANARY", str(place.canary)) + CHAT
    (place.base / "chat_template.jinja").write_text(text)
    ended = place.qlora("train", str(place.write_recipe()))
    assert ended.exit_code == 2, ended.said
    assert "chat template" in ended.said


@pytest.mark.parametrize("template", HARMLESS.values(), ids=HARMLESS.keys())
def test_a_template_that_finds_nothing_prints_nothing(place, template):
    (place.base / "chat_template.jinja").write_text(template + CHAT)
    ended = place.qlora("data", "show", str(place.write_recipe()))
    assert ended.exit_code == 0, ended.said
    assert "<class" not in ended.said


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "..", "pipe", "large"])
def test_a_template_file_that_is_no_text_file_is_refused(place, path):
    import os

    if path == "pipe":
        os.mkfifo(place.here / "pipe")
    if path == "large":
        with (place.here / "large").open("wb") as file:
            file.truncate(1 << 36)
    ended = place.qlora("train", str(place.write_recipe(model={"chat_template": path})))
    assert ended.exit_code == 2
    assert "model.chat_template" in ended.said


COMMANDS = {
    "data check": ("data", "check", "recipe.yaml"),
    "data show": ("data", "show", "recipe.yaml"),
    "generate": ("generate", "base", "--prompt", "hi", "--max-new-tokens", "1"),
    "eval": ("eval", "made-elsewhere/adapter", "--data", "sums.jsonl"),
    "merge": ("merge", "made-elsewhere/adapter", "--out", "runs/merged"),
}


@pytest.mark.torture
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("template", REFUSED.values(), ids=REFUSED.keys())
def test_no_command_lets_a_template_out(place, template, command):
    (place.base / "chat_template.jinja").write_text(template.replace("CANARY", str(place.canary)) + CHAT)
    place.write_recipe()
    ended = place.qlora(*COMMANDS[command])
    assert ended.exit_code in (0, 2, 3, 4), ended.said
