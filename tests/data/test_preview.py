"""The preview shows what is trained, and special tokens."""

from __future__ import annotations

from qlora_cli.data.example import Conversation, Place
from qlora_cli.data.preview import show_example
from qlora_cli.data.rendering import Renderer

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_trained_text_is_green_and_the_whole_text_is_there(tokenizer_for):
    tokenizer = tokenizer_for(CHATML + PROMPT)
    messages = [{"role": "user", "content": "Grüße 🙂"}, {"role": "assistant", "content": "你好"}]
    [row] = Renderer(tokenizer).render([Conversation(messages, None, Place("t", 1, 1))])
    text = show_example(row, tokenizer)
    whole = "<|im_start|>user\nGrüße 🙂<|im_end|>\n<|im_start|>assistant\n你好<|im_end|>\n"
    assert text.plain == whole
    green = "".join(text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style))
    bold = [text.plain[span.start : span.end] for span in text.spans if "bold" in str(span.style)]
    assert green == "你好<|im_end|>\n"
    assert bold == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
