"""What a merge has written, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class WrittenWeights:
    """Keys of the tensors that have been written."""

    num_parameters: int
    dtype: str
    """Of the tensors that changed; where they have several, the one of most."""

    folded: list[str] = field(default_factory=list)
    """The adapter changed them."""

    dequantized: list[str] = field(default_factory=list)
    """They have the values to which training had quantized them, and no update."""

    copied: list[str] = field(default_factory=list)
    """They are the base's, byte for byte."""

    converted: list[str] = field(default_factory=list)
    """They are the base's in the type that was asked for."""

    added: list[str] = field(default_factory=list)
    """The base has none of that name: biases, of which the adapter brings some."""

    left_out: list[str] = field(default_factory=list)
    """Files and folders beside the base's weights that were not copied."""

    @property
    def num_tensors(self) -> dict[str, int]:
        """Of each way, for people."""
        ways = {
            "folded": self.folded,
            "dequantized": self.dequantized,
            "converted": self.converted,
            "added": self.added,
            "copied byte for byte": self.copied,
        }
        return {way: len(keys) for way, keys in ways.items() if keys}
