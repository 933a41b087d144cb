"""Keys and values of several rows in one cache: rows come in on the right edge, leave, and share no entry.

Every row ends in the last column; shorter ones have padding on their left, which the attention mask hides.

    row A   . . a a a a        1 column = the keys and values of 1 token in every layer
    row B   b b b b b b
    row C   . . . . c c
"""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache

# B = rows, T = columns


class StackedCache:
    """A cache with its mask. Empty until the first row comes in."""

    def __init__(self) -> None:
        self.cache = DynamicCache()
        self.mask_BT: torch.Tensor | None = None
        """1 for tokens, 0 for padding."""

    @property
    def num_columns(self) -> int:
        """Tokens of the longest row."""
        return 0 if self.mask_BT is None else self.mask_BT.shape[1]

    def join(self, row: DynamicCache, num_tokens: int) -> None:
        """Take in a row that was computed by itself.

        Args:
            row: its cache, of one row without padding.
            num_tokens: tokens in it.
        """
        device = row.layers[0].keys.device
        mask = torch.ones((1, num_tokens), dtype=torch.long, device=device)
        if self.mask_BT is None:
            self.cache, self.mask_BT = row, mask
            return
        width = max(self.num_columns, num_tokens)
        for own, other in zip(self.cache.layers, row.layers, strict=True):
            own.keys = torch.cat([_widened(own.keys, width, 2), _widened(other.keys, width, 2)])
            own.values = torch.cat([_widened(own.values, width, 2), _widened(other.values, width, 2)])
        self.mask_BT = torch.cat([_widened(self.mask_BT, width, 1), _widened(mask, width, 1)])

    def next_mask(self) -> torch.Tensor:
        """The mask with a column for one more token of every row; it counts from here on."""
        assert self.mask_BT is not None
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones((len(self.mask_BT), 1))], dim=1)
        return self.mask_BT

    def keep(self, rows: list[int]) -> None:
        """Let all rows go but these, and the columns in which only padding would be left."""
        assert self.mask_BT is not None
        if not rows:
            self.cache, self.mask_BT = DynamicCache(), None
            return
        chosen = torch.tensor(rows, device=self.mask_BT.device)
        mask = self.mask_BT[chosen]
        start = mask.shape[1] - int(mask.sum(dim=1).max())
        for layer in self.cache.layers:
            # Indexing copies, so that what belonged to the rows that left is freed.
            layer.keys = layer.keys[:, :, start:][chosen]
            layer.values = layer.values[:, :, start:][chosen]
        self.mask_BT = mask[:, start:]


def _widened(tensor: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Zeros put before a tensor's entries, up to `width` of them along `dim`.

    >>> _widened(torch.tensor([[1, 2]]), 4, 1).tolist()
    [[0, 0, 1, 2]]
    """
    missing = width - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = [*tensor.shape]
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)
