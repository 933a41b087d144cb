"""What becomes of the next logits of one answer."""

from __future__ import annotations

import pytest
import torch

from qlora_cli.serve.engine.requests import Finish, GenerationRequest
from qlora_cli.serve.engine.rows import Row
from qlora_cli.serve.engine.tickets import QueuedTicket
from tests.tiny_models import byte_tokenizer


@pytest.mark.parametrize(
    ("stop", "heard"),
    [
        ((), "Bye.\nuser"),  # a special token is not in the text
        (("<|im_start|>",), "Bye.\n"),
        (("never", "<|im_start|>"), "Bye.\n"),
        (("im_start",), "Bye.\nuser"),
        ((".\nus", "<|im_start|>"), "Bye.\n"),
        (("\nuser",), "Bye."),
    ],
)
def test_a_stop_text_that_is_a_special_token_ends_the_answer_where_the_token_comes(stop, heard):
    """Clients send the marks of the template, as in huggingface/text-generation-inference#1254."""
    tokenizer = byte_tokenizer()
    asked = GenerationRequest((5, 6), "base", 40, stop=stop)
    row = Row(asked, QueuedTicket(lambda: None), 40, tokenizer, frozenset(), torch.device("cpu"))
    said = tokenizer("Bye.\n<|im_start|>user", add_special_tokens=False).input_ids
    for token_id in said:
        if not row.is_finished:
            row.take(torch.nn.functional.one_hot(torch.tensor(token_id), len(tokenizer)).float())
    is_stopped = row.is_finished
    row.finish("length")
    *pieces, finish = row.ticket.events()
    assert "".join(piece.text for piece in pieces) == heard
    assert isinstance(finish, Finish)
    assert (finish.reason == "stop") == is_stopped == (heard != "Bye.\nuser")
