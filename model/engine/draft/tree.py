"""Drafts of one stream as a tree: what they begin with in common is read once.

return x . y          nodes  0 return  1 x  2 .  3 y
         + 1                                4 +  5 1     (parents 1 and 4)
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field


@dataclass(slots=True)
class DraftTree:
    """Drafted tokens, each after its parent; -1 is the end of what is decided."""

    tokens: list[int] = field(default_factory=list[int])
    parents: list[int] = field(default_factory=list[int])
    _children: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])

    @classmethod
    def of(cls, branches: Iterable[Items[int]], room: int) -> DraftTree:
        """A tree of drafts, the first ones first, of `room` tokens at most."""
        tree = cls()
        for branch in branches:
            node = -1
            for token in branch:
                child = tree.child(node, token)
                if child is None:
                    if len(tree.tokens) >= room:
                        return tree
                    child = tree._add(node, token)
                node = child
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
