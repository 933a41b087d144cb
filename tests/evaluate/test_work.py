"""Batches that continue where they were, and that become smaller where memory is short."""

import pytest
import torch

from qlora_cli.errors import ArgumentError, ResourceError, RunInUseError
from qlora_cli.evaluate.kept import kept_in, key_of
from qlora_cli.evaluate.work import Work
from qlora_cli.run.eval_results import PARTIAL_NAME, eval_files

ITEMS = [3, 1, 2, 5, 4, 7, 6]


def squares(work, compute=None, together=lambda item: None):
    """The squares of the items, and the batches in which they were computed."""
    seen = []

    def each(batch):
        seen.append(list(batch))
        return [{"square": one * one} for one in batch]

    values = work.batches("model", ["squares"], ITEMS, lambda one: one, compute or each, lambda one: one, together)
    return [value["square"] for value in values], seen


def test_batches_are_of_like_size_the_largest_first_and_results_in_order():
    values, seen = squares(Work(3))
    assert values == [9, 1, 4, 25, 16, 49, 36]
    assert seen == [[7, 6, 5], [4, 3, 2], [1]]


def test_what_must_not_share_a_batch_does_not():
    _, seen = squares(Work(3), together=lambda one: one > 5)
    assert seen == [[7, 6], [5, 4, 3], [2, 1]]


def test_an_evaluation_that_was_stopped_computes_only_the_batches_that_are_not_complete(tmp_path):
    with kept_in(tmp_path) as kept:
        kept.add(
            [key_of("model", "squares", one) for one in (7, 6, 5, 4)], [{"square": one * one} for one in (7, 6, 5, 4)]
        )
    with kept_in(tmp_path) as kept:
        values, seen = squares(Work(3, kept))
        assert kept.num_found == 4
    assert values == [9, 1, 4, 25, 16, 49, 36]
    assert seen == [[4, 3, 2], [1]]


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path):
    with kept_in(tmp_path) as kept:
        kept.add(["a", "b"], [{"n": 1}, {"n": 2}])
    path = tmp_path / PARTIAL_NAME
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if not whole[:length].startswith(b'{"written_by": "qlora"}\n') and length:
            continue  # the first line is written in one piece
        with kept_in(tmp_path) as kept:
            kept.add(["c"], [{"n": 3}])
        with kept_in(tmp_path) as kept:
            assert kept.get("c") == {"n": 3}
            assert kept.get("a") in (None, {"n": 1})


def test_where_nothing_was_computed_nothing_is_left(tmp_path):
    with kept_in(tmp_path / "eval"):
        pass
    assert not (tmp_path / "eval").exists()


def test_a_file_of_somebody_else_is_refused_and_stays(tmp_path):
    (tmp_path / PARTIAL_NAME).write_text("mine\n")
    with pytest.raises(ArgumentError, match="was not written by qlora"), kept_in(tmp_path):
        pass
    assert (tmp_path / PARTIAL_NAME).read_text() == "mine\n"
    assert eval_files(tmp_path) == set()


def test_two_evaluations_do_not_write_into_one_folder(tmp_path):
    with kept_in(tmp_path), pytest.raises(RunInUseError, match="another `qlora eval`"), kept_in(tmp_path):
        pass


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_too_little_memory_halves_the_batch_for_good_and_says_so_once(fault, capsys):
    seen = []

    def compute(batch):
        seen.append(len(batch))
        if len(batch) > 2:
            raise fault
        return [{"square": one * one} for one in batch]

    values, _ = squares(Work(6), compute)
    assert values == [9, 1, 4, 25, 16, 49, 36]
    assert seen == [6, 3, 1, 1, 1, 1, 1, 1, 1]
    assert capsys.readouterr().err.count("memory is too small for 6 questions at a time") == 1


def test_too_little_memory_for_one_question_is_an_error():
    def compute(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ResourceError, match="for a single question"):
        squares(Work(4), compute)


def test_another_fault_is_not_taken_for_memory():
    def compute(batch):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        squares(Work(4), compute)
