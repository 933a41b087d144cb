"""Base class of a recipe's sections."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of recipe keys that refuses unknown ones."""

    # The sentences under the fields reach users through json_schema.py: pydantic's own use_attribute_docstrings
    # parses this file at each import, 25 of the 300 ms in which `qlora validate` must answer.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
