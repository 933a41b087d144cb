"""What an engine does with requests that are cancelled, stopped, too many or too long, and with steps that fail."""

import itertools
import random
import threading
import time

import pytest
import torch

from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.serve.engine.loading import load_engine
from qlora_cli.serve.engine.requests import GenerationRequest, QueueFull
from qlora_cli.serve.engine.scheduler import EngineLimits
from tests.deploy.models import save_llama, save_run
from tests.serve.engine.asking import Alone, assert_as_alone, find, hear, mixed_load, request, save_adapter, serving


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = save_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)
    return {
        "a": save_adapter(tmp_path_factory.mktemp("a"), base, 1),
        "b": save_adapter(tmp_path_factory.mktemp("b"), base, 2, target_modules=["q_proj"]),
        "dora": save_adapter(tmp_path_factory.mktemp("dora"), base, 3, use_dora=True),
    }


@pytest.fixture(scope="module")
def loaded(folders):
    with serving(folders) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def alone(folders):
    return Alone(folders)


def failing(monkeypatch, loaded, fault, is_hit):
    """Have the model raise `fault` in passes that `is_hit` says yes to, given the names of their rows."""
    model = loaded.engine._model
    run = model.run

    def run_or_fail(names, *args, **kwargs):
        if is_hit(list(names)):
            raise fault
        return run(names, *args, **kwargs)

    monkeypatch.setattr(model, "run", run_or_fail)


def test_few_places_and_short_stretches_of_prompts_change_no_answer(folders, alone):
    limits = EngineLimits(max_rows=3, max_cache_tokens=400, tokens_between_steps=7)
    with serving(folders, limits) as loaded:
        assert_as_alone(loaded, alone, mixed_load(loaded.engine.names))


def test_random_arrivals_cancellations_and_stop_texts_change_no_other_answer(loaded, alone):
    draw = random.Random(0)
    kept, tickets = [], []
    for number in range(40):
        name = draw.choice(loaded.engine.names)
        ticket = loaded.engine.submit(request(loaded, name, number % 9, max_new_tokens=24))
        tickets.append(ticket)
        if draw.random() < 0.4:
            threading.Timer(draw.random() / 10, ticket.cancel).start()
        else:
            kept.append((name, number % 9, ticket))
        if draw.random() < 0.2:
            hear(draw.choice(tickets[-1:]))
            kept = [one for one in kept if one[2] is not ticket]
    for name, number, ticket in kept:
        assert hear(ticket).text == alone.answer(name, number).text
    assert loaded.engine.state().num_waiting == 0


def test_a_cancelled_answer_ends_soon_and_frees_its_place(loaded):
    ticket = loaded.engine.submit(request(loaded, "a", 3, max_new_tokens=150))
    events = ticket.events()
    next(events)
    ticket.cancel()
    *_, finish = events
    assert finish.reason == "cancelled"
    assert finish.num_new_tokens < 150
    hear(loaded.engine.submit(request(loaded, "a", 3, max_new_tokens=1)))
    deadline = time.monotonic() + 60  # the last event comes before the round is counted
    while loaded.engine.state().num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loaded.engine.state().num_running == 0


def test_an_answer_ends_before_its_stop_text_wherever_tokens_meet(loaded):
    whole = hear(loaded.engine.submit(request(loaded, "a", 3))).text
    for start, length in itertools.product((2, 5, 9), (1, 2, 4)):
        stop = whole[start : start + length]
        heard = hear(loaded.engine.submit(request(loaded, "a", 3, stop=(stop, "never met"))))
        assert heard.text == whole[: whole.index(stop)]
        assert heard.finish.reason == "stop"
        assert stop not in heard.text


def test_a_full_queue_refuses_and_a_closed_engine_too(folders):
    with serving(folders, EngineLimits(max_rows=1, max_waiting=2)) as loaded:
        tickets = []
        with pytest.raises(QueueFull):
            for number in range(9):
                tickets.append(loaded.engine.submit(request(loaded, "a", number, max_new_tokens=100)))
        loaded.engine.close(0)
        assert all(hear(ticket).finish.reason in ("failed", "stop", "length") for ticket in tickets)
        with pytest.raises(ArgumentError, match="closing"):
            loaded.engine.submit(request(loaded, "a", 1))


def test_closing_leaves_the_adapters_switched_on(folders):
    with serving(folders) as loaded:
        model = loaded.engine._model._model
        for name in ("dora", "a", "base"):
            hear(loaded.engine.submit(request(loaded, name, 3)))
        assert model.get_model_status().enabled is False
    assert model.get_model_status().enabled is True


def test_closing_finishes_what_runs(folders):
    with serving(folders) as loaded:
        tickets = [loaded.engine.submit(request(loaded, "a", number)) for number in range(5)]
        loaded.engine.close(60)
        assert {hear(ticket).finish.reason for ticket in tickets} <= {"stop", "length"}


def test_a_pass_that_fails_for_one_adapter_ends_its_answers_alone(folders, alone, monkeypatch):
    with serving(folders) as loaded:
        failing(monkeypatch, loaded, ValueError("a bad row"), lambda names: "b" in names)
        asked = [(name, number) for number, name in enumerate(["a", "b", "base", "dora", "b", "a"])]
        tickets = [loaded.engine.submit(request(loaded, name, number)) for name, number in asked]
        for (name, number), ticket in zip(asked, tickets, strict=True):
            heard = hear(ticket)
            if name == "b":
                assert heard.finish.error == "the model failed: ValueError: a bad row"
            else:
                assert heard.text == alone.answer(name, number).text


def test_where_memory_runs_out_fewer_rows_run_and_every_answer_is_made(folders, alone, monkeypatch):
    with serving(folders) as loaded:
        failing(monkeypatch, loaded, torch.OutOfMemoryError("no"), lambda names: len(names) > 2)
        assert_as_alone(loaded, alone, mixed_load(("a", "b", "base")))


def test_a_request_for_which_memory_never_suffices_fails_and_the_next_one_is_answered(folders, monkeypatch):
    with serving(folders) as loaded:
        failing(monkeypatch, loaded, torch.OutOfMemoryError("no"), lambda names: "dora" in names)
        tickets = [loaded.engine.submit(request(loaded, name, 1)) for name in ("dora", "a", "dora")]
        reasons = [hear(ticket).finish.reason for ticket in tickets]
        assert reasons[0] == reasons[2] == "failed"
        assert reasons[1] in ("stop", "length")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "nobody"}, "there is no model 'nobody'"),
        ({"prompt_ids": (5, 5000)}, "holds token 5000"),
        ({"prompt_ids": (5, -1)}, "holds token -1"),
        ({"prompt_ids": (5,) * 256}, "the model's context is 256"),
        ({"max_new_tokens": 0}, "may have 0"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_at_once(loaded, change, words):
    with pytest.raises(ArgumentError, match=words):
        loaded.engine.submit(GenerationRequest(**{"prompt_ids": (5, 6), "model": "a", "max_new_tokens": 3} | change))


def test_an_answer_ends_at_the_context(loaded):
    heard = hear(loaded.engine.submit(GenerationRequest((9,) * 250, "a", 100)))
    assert heard.finish.num_new_tokens <= 6


def test_quantized_bases_answer_a_mixed_load_as_alone(tmp_path, folders):
    base = find(folders["a"]).model.base_model
    runs = {
        "all": save_run(tmp_path / "all", base).path,
        "few": save_run(tmp_path / "few", base, target_modules=["v_proj"]).path,
    }
    with serving(runs) as loaded:
        assert loaded.num_together == 3
        assert_as_alone(loaded, Alone(runs), mixed_load(loaded.engine.names))


def test_names_and_bases_that_do_not_go_together_are_refused(tmp_path, folders):
    a = find(folders["a"])
    with pytest.raises(ArgumentError, match="given twice"):
        load_engine([("a", a), ("a", a)])
    with pytest.raises(ArgumentError, match="cannot be called 'base'"):
        load_engine([("base", a)])
    run = save_run(tmp_path / "nf4", a.model.base_model)
    with pytest.raises(IdentityError, match="'n' has its base stored as nf4, and 'a' 16 bit"):
        load_engine([("a", a), ("n", find(run.path))])
    other = save_llama(tmp_path / "other", tie_word_embeddings=True)
    with pytest.raises(IdentityError, match="stands on"):
        load_engine([("a", a), ("o", find(other))])


def test_a_plain_model_is_served_under_its_name_and_as_base(folders):
    base = find(folders["a"]).model.base_model
    with serving({"it": base}) as loaded:
        assert loaded.engine.names == ("it", "base")
        texts = [hear(loaded.engine.submit(request(loaded, name, 3))).text for name in loaded.engine.names]
        assert texts[0] == texts[1] != ""
