"""Drafts of one stream as a tree: what they begin with in common is read once.

return x . y          nodes  0 return  1 x  2 .  3 y
         + 1                                4 +  5 1     (parents 1 and 4)
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple


class Drafted(NamedTuple):
    """A token of a draft."""

    token: int
    odds: float
    """How likely it is to be right, and all before it."""


Draft = list[Drafted]


@dataclass(slots=True)
class DraftTree:
    """Drafted tokens, each after its parent; -1 is the end of what is decided."""

    tokens: list[int] = field(default_factory=list[int])
    parents: list[int] = field(default_factory=list[int])
    _children: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])

    @classmethod
    def of(cls, drafts: Iterable[Draft], least_odds: Items[float]) -> DraftTree:
        """The likeliest tokens of some drafts, as long as the next one's odds are at least what a
        tree of so many tokens asks of one more; no more tokens than `least_odds` are taken."""
        paths = [
            (tuple(token for token, _ in draft[: depth + 1]), drafted.odds)
            for draft in drafts
            for depth, drafted in enumerate(draft)
        ]
        # Of a path, what comes first is at least as likely; of equal ones the earlier draft leads.
        paths.sort(key=lambda path: -path[1])
        tree = cls()
        nodes: dict[tuple[int, ...], int] = {(): -1}
        for path, odds in paths:
            if path in nodes:
                continue
            if len(tree.tokens) == len(least_odds) or odds < least_odds[len(tree.tokens)]:
                break
            nodes[path] = tree._add(nodes[path[:-1]], path[-1])
        return tree

    def _add(self, parent: int, token: int) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self._children[parent, token] = len(self.tokens) - 1
        return len(self.tokens) - 1

    def child(self, node: int, token: int) -> int | None:
        """The node of a token after a node, if it was drafted."""
        return self._children.get((node, token))

    def longest(self) -> tuple[int, ...]:
        """The tokens of the longest draft."""
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(self.tokens, self.parents, strict=True):
            paths.append((*(() if parent < 0 else paths[parent]), token))
        return max(paths, key=len, default=())


def least_odds(costs: dict[int, float], most: int) -> list[float]:
    """Of the first, second, ... drafted token of a forward, the odds from which it pays.

    `costs`: milliseconds of a forward by its number of rows. A row pays where what it takes is
    less than its odds times what a forward of one token takes, which it may save.
    """
    rows = sorted(costs)
    if len(rows) < 2:
        return [UNMEASURED] * most
    odds: list[float] = []
    for few, many in pairwise(rows):
        row_ms = (costs[many] - costs[few]) / (many - few)
        odds += [max(row_ms / costs[rows[0]], FREE)] * (many - few)
    # A step may be cheap that comes behind a dear one; it is to be had with that one alone.
    for index in range(1, len(odds)):
        odds[index] = max(odds[index - 1], odds[index])
    return odds[:most]


UNMEASURED = 0.1
"""`least_odds` where nobody has measured what rows cost."""
FREE = 0.03
"""No token is drafted that is less likely, however cheap its row."""
