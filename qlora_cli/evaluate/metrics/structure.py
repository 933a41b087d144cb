"""Answers that must be JSON of a given form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.evaluate.metrics.metric import Metric

_FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL | re.IGNORECASE)


def json_value(answer: str) -> Any:
    """The JSON that an answer is; a code fence around all of it does not count.

    Raises:
        ValueError: if it is something else, such as JSON with words around it, or NaN.

    >>> json_value('{"a": 1}'), json_value("```json\\n[2]\\n```")
    ({'a': 1}, [2])
    """
    fenced = _FENCED.match(answer)
    try:
        return json.loads(fenced[1] if fenced else answer, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def is_json(answer: str, reference: str) -> float:
    """1 if the answer is JSON; the reference plays no part.

    >>> is_json('{"a": 1}', ""), is_json("Sure: {}", "")
    (1.0, 0.0)
    """
    try:
        json_value(answer)
    except ValueError:
        return 0.0
    return 1.0


def json_valid(schema_file: str | None) -> Metric:
    """Validity against a JSON Schema (its `$schema` says which draft; 2020-12 where it does not).

    Raises:
        ArgumentError: if the package jsonschema is not installed.
        DataError: if the schema cannot be read or is none.
    """
    if schema_file is None:
        return Metric(is_json, "1 if the whole answer is JSON", reads_normalized=False)
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for
    except ModuleNotFoundError:
        raise ArgumentError("'json_schema' needs the package jsonschema", hint="pip install jsonschema") from None
    schema = _read_schema(schema_file)
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as fault:
        where = "/".join(map(str, fault.absolute_path)) or "the top"
        raise DataError(f"is not a JSON Schema: at {where}: {fault.message}", place=schema_file) from fault
    validator = kind(schema)

    def score(answer: str, reference: str) -> float:
        try:
            return float(validator.is_valid(json_value(answer)))
        except ValueError:
            return 0.0

    rule = f"1 if the whole answer is JSON that is valid against {Path(schema_file).name}"
    return Metric(score, rule, reads_normalized=False)


def _read_schema(schema_file: str) -> Any:
    try:
        schema = json.loads(Path(schema_file).expanduser().read_text("utf-8"))
    except OSError as fault:
        raise DataError(f"cannot be read: {fault.strerror}", place=schema_file, hint="name a JSON Schema") from fault
    except (ValueError, RecursionError) as fault:
        raise DataError(f"is not JSON: {fault}", place=schema_file, hint="name a JSON Schema") from fault
    if not isinstance(schema, dict | bool):
        raise DataError("is not a JSON Schema: it must be an object", place=schema_file)
    return schema
