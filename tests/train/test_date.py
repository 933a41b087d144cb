"""A chat template that prints today's date prints the same day for as long as a run lasts."""

from __future__ import annotations

import datetime
import shutil

import pytest

from qlora_cli.data.cache import cache_root
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.tiny_models import CHATML

PRINTS_TODAY = "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML


@pytest.fixture
def recipe(small_recipe, tmp_path, monkeypatch):
    """Eight steps with a template that prints the date; the data cache is this test's own."""
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    template = tmp_path / "today.jinja"
    template.write_text(PRINTS_TODAY)

    def build(**data):
        base = small_recipe().model.base_model
        return small_recipe(model={"base_model": base, "chat_template": str(template)}, data=data)

    return build


@pytest.fixture
def day(monkeypatch):
    """Sets the clock's day."""

    def set_to(text: str) -> None:
        class Clock(datetime.date):
            @classmethod
            def today(cls) -> datetime.date:
                return datetime.date.fromisoformat(text)

        monkeypatch.setattr(datetime, "date", Clock)

    return set_to


def fingerprint(run: RunDirectory) -> str:
    return read_manifest(run)["data"]["fingerprint"]


def adapter_bytes(run: RunDirectory) -> bytes:
    return (run.adapter_path / "adapter_model.safetensors").read_bytes()


def test_a_run_resumed_on_another_day_without_its_cache_trains_the_same_bytes(recipe, day, tmp_path):
    day("2026-11-28")
    whole = RunDirectory(tmp_path / "whole")
    train_recipe(recipe(), whole, TrainOptions())

    run = RunDirectory(tmp_path / "run")
    train_recipe(recipe(), run, TrainOptions(stop_after=4))
    day("2027-02-03")
    shutil.rmtree(cache_root())
    train_recipe(recipe(), run, TrainOptions(resume=True))
    assert fingerprint(run) == fingerprint(whole)
    assert adapter_bytes(run) == adapter_bytes(whole)

    another = RunDirectory(tmp_path / "another")
    train_recipe(recipe(), another, TrainOptions())
    assert fingerprint(another) != fingerprint(whole), "the template does print the day"


def test_a_day_in_the_recipe_makes_the_same_rows_on_every_day(recipe, day, tmp_path):
    fingerprints = set()
    for number, today in enumerate(("2026-11-28", "2027-02-03")):
        day(today)
        run = RunDirectory(tmp_path / f"run{number}")
        train_recipe(recipe(date="2026-12-24"), run, TrainOptions())
        fingerprints.add(fingerprint(run))
    assert len(fingerprints) == 1
