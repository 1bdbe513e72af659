"""A million items for a scheduler, and how far it runs ahead of what was heard."""

from __future__ import annotations

from collections.abc import Iterator


class Flow:
    """taken: items so far. heard: outcomes so far. most: items that were in flight at once."""

    def __init__(self) -> None:
        self.taken = self.heard = self.most = 0

    def items(self) -> Iterator[int]:
        for i in range(1_000_000):
            self.taken += 1
            self.most = max(self.most, self.taken - self.heard)
            yield i

    def listen(self, _outcome: int) -> None:
        self.heard += 1
