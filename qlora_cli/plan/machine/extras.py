"""Packages that qlora can do without until a recipe asks for what they do."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

IMPORT_FAULTS = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError, LookupError, SyntaxError)
"""Errors of a broken package when it is imported."""

LONGEST_FAULT = 200
"""Characters."""


@dataclass(frozen=True)
class Extra:
    """One such package."""

    package: str
    """Its name on the package index."""

    module: str
    """The module that it brings."""

    purpose: str

    entry: str = ""
    """The module that is imported in use, where that is not `module`."""


EXTRAS = (
    Extra("rouge-score", "rouge_score", "the metric rouge_l", "rouge_score.rouge_scorer"),
    Extra("lm-eval", "lm_eval", "benchmarks of lm-evaluation-harness by name"),
    Extra("tensorboard", "tensorboard", "report_to: tensorboard", "torch.utils.tensorboard"),
    Extra("wandb", "wandb", "report_to: wandb"),
    Extra("mlflow-skinny", "mlflow", "report_to: mlflow"),
    Extra("trackio", "trackio", "report_to: trackio"),
)


def missing_packages() -> list[Extra]:
    """Those that are not installed."""
    return [extra for extra in EXTRAS if find_spec(extra.module) is None]


def try_package(extra: Extra) -> str:
    """Why an installed package cannot be imported; empty where it can."""
    try:
        import_module(extra.entry or extra.module)
    except IMPORT_FAULTS as fault:
        return f"cannot be imported: {one_line(fault)}"
    return ""


def one_line(said: object) -> str:
    """The beginning of an error's text."""
    text = " ".join(str(said).split())
    return text if len(text) <= LONGEST_FAULT else text[:LONGEST_FAULT] + "…"
