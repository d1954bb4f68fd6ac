"""Many names in little memory."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import UInt8


class Names(Sequence[str]):
    """Many strings in one block of bytes: a tenth of the memory of a list, and quick to pickle."""

    def __init__(self, names: Sequence[str]):
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.text = np.frombuffer(b"".join(encoded), np.uint8)
        self.ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    @classmethod
    def of(cls, text: UInt8[np.ndarray, " byte"], lengths: np.ndarray) -> Self:
        """The names that `text` holds one after another, by their lengths in bytes."""
        names = cls(())
        names.text = text
        names.ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return names

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i) -> str:
        return self.text[self.ends[i] : self.ends[i + 1]].tobytes().decode("utf-8", "surrogateescape")
