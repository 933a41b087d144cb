"""What a launcher's variables mean, and what is left of them for the libraries."""

from __future__ import annotations

import pytest

from qlora_cli.errors import ArgumentError
from qlora_cli.train.processes.launch import Launch, take_launch, visible_gpu

TORCHRUN = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}


def test_without_a_launcher_a_process_is_alone_and_sees_all_gpus():
    environment = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert take_launch(environment) == Launch()
    assert environment == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_torchrun_gives_a_rank_and_accelerate_never_hears_of_it():
    environment = dict(TORCHRUN)
    launch = take_launch(environment)
    assert (launch.rank, launch.world_size, launch.has_agent) == (1, 2, True)
    assert environment.keys() & {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} == set()
    assert environment["MASTER_PORT"] == "29500"


def test_one_process_of_torchrun_is_a_process_alone():
    environment = TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    assert take_launch(environment) == Launch()
    assert "LOCAL_RANK" not in environment


def test_all_processes_of_a_launch_have_its_name_and_no_other_launch_has():
    names = [take_launch(TORCHRUN | {"RANK": rank, "LOCAL_RANK": rank}).name for rank in "01"]
    assert names[0] == names[1]
    assert take_launch(TORCHRUN | {"MASTER_PORT": "29501"}).name != names[0]


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        (None, ["0", "1", "2"]),
        ("4,6,5", ["4", "6", "5"]),
        ("GPU-a, GPU-b, GPU-c", ["GPU-a", "GPU-b", "GPU-c"]),
        ("", [None, None, None]),
        ("-1", [None, None, None]),
        ("7", [None, None, None]),
    ],
)
def test_each_process_sees_one_gpu_of_those_in_sight(visible, gpus):
    assert [visible_gpu(visible, rank, 3) for rank in range(3)] == gpus


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number"),
        ({"RANK": "2"}, "WORLD_SIZE is 2, but RANK is 2"),
        ({"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "several machines"),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}, "2 GPUs for 3 processes"),
    ],
)
def test_variables_that_do_not_fit_are_refused(changed, words):
    with pytest.raises(ArgumentError, match=words):
        take_launch(TORCHRUN | changed)


@pytest.mark.parametrize("missing", ["RANK", "MASTER_PORT"])
def test_a_variable_that_is_missing_is_named(missing):
    environment = {key: value for key, value in TORCHRUN.items() if key not in (missing, f"LOCAL_{missing}")}
    with pytest.raises(ArgumentError, match=missing):
        take_launch(environment)
