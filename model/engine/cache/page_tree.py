"""Book-keeping of the context cache: which page holds the keys and values of which tokens.

A prefix tree. A node is a page of up to `PAGE_SIZE` tokens that continue its
parent's, which is full; streams are causal, so all streams that begin alike share their pages:

    stream 1   [a class of def add] [( a , b] [) :]     one more token goes into the last page
    stream 2             "             "     [* c)      parts inside it: its first tokens are copied

What was written in a page never changes, and a stream reads a page only up to its own length. So a
page may be shared while it still fills, backspace encodes nothing, and reuse is exact to the token.
Pages that no open stream reads go, the least recently used first, a page's continuations before it.
Imports no torch; the tensors live in `page_pool`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

PAGE_SIZE = 16
"""Tokens of a page. More make tables shorter, and copies and half-empty pages larger."""


@dataclass(frozen=True, slots=True)
class PageTable:
    """Where a stream lies: its pages in order, of the last one only what `length` leaves."""

    pages: tuple[int, ...] = ()
    length: int = 0
    """Tokens of the stream."""

    def first(self, num_tokens: int) -> PageTable:
        """The table of the stream's first tokens."""
        return PageTable(self.pages[: _num_pages(num_tokens)], num_tokens)


@dataclass(eq=False, slots=True)
class _Node:
    """A page and the tokens in it. A root has neither."""

    page: int = -1
    tokens: list[int] = field(default_factory=list[int])
    parent: _Node | None = None
    children: list[_Node] = field(default_factory=lambda: list[_Node]())
    users: int = 0
    """Open streams that read this page; they read its ancestors, too."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Pages for a stream whose last tokens are still to be encoded."""

    table: PageTable
    """Where the whole stream will lie."""
    cached: PageTable
    """Where its first tokens lie already: all but the last of these pages are the stream's own, and
    the last one may be another stream's, from which tokens are to be copied."""
    new_pages: tuple[int, ...]
    """The pages of `table` that held something else until now, or nothing."""
    tokens: tuple[int, ...]


class PageTree:
    """Hands out pages for streams and remembers what they hold."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages is {num_pages}; a stream needs two")
        self.num_pages = num_pages
        self._root = _Node()
        # In the order of their last use, every page after its continuations.
        self._nodes: OrderedDict[int, _Node] = OrderedDict()
        self._free = list(reversed(range(num_pages)))
        self._num_in_use = 0
        self._pending: Reservation | None = None

    @property
    def num_filled(self) -> int:
        """Pages that hold something, in use or not."""
        return len(self._nodes)

    def cached_length(self, tokens: Sequence[int]) -> int:
        """How many of a stream's first tokens are cached."""
        return self._match(list(tokens))[1]

    def reserve(self, tokens: Sequence[int]) -> Reservation | None:
        """Find what is cached of a stream and make room for the rest.

        None when the pages in use leave too little room; then nothing has changed. Else the caller
        encodes what is missing and must `commit`, or `cancel`, before the next reservation.
        """
        if not tokens:
            raise ValueError("a stream has at least one token")
        assert self._pending is None, "the last reservation is still open"
        path, num_cached, source = self._match(tokens)
        missing = _num_pages(len(tokens)) - len(path)
        self._pin(path)
        pages = self._allocate(missing, spare=source)
        if pages is None and source is not None:  # rather encode a few tokens again than none
            num_cached, source = len(path) * PAGE_SIZE, None
            pages = self._allocate(missing)
        if pages is None:
            self._unpin(path)
            return None
        own = tuple(node.page for node in path)
        self._pending = Reservation(
            PageTable((*own, *pages), len(tokens)),
            PageTable(own if source is None else (*own, source.page), num_cached),
            tuple(pages),
            tuple(tokens),
        )
        return self._pending

    def commit(self, reservation: Reservation) -> PageTable:
        """The stream is encoded: later ones may share it. `release` its table in the end."""
        pages = reservation.table.pages
        num_old = len(pages) - len(reservation.new_pages)
        parent = self._root
        for index, page in enumerate(pages):
            start = index * PAGE_SIZE
            tokens = list(reservation.tokens[start : start + PAGE_SIZE])
            if index >= num_old:
                self._nodes[page] = _Node(page, parent=parent)
                parent.children.append(self._nodes[page])
                self._pin([self._nodes[page]])
            parent = self._nodes[page]
            if len(tokens) > len(parent.tokens):
                parent.tokens = tokens
        for page in reversed(pages):
            self._nodes.move_to_end(page)
        self._pending = None
        return reservation.table

    def cancel(self, reservation: Reservation) -> None:
        """The encoding failed: give the pages back."""
        num_old = len(reservation.table.pages) - len(reservation.new_pages)
        self._unpin([self._nodes[page] for page in reservation.table.pages[:num_old]])
        self._free += reservation.new_pages
        self._pending = None

    def release(self, table: PageTable) -> None:
        """The stream is read no more; its pages stay for later ones while there is room."""
        nodes = [self._nodes.get(page) for page in table.pages]
        open_nodes = [node for node in nodes if node is not None and node.users]
        if len(open_nodes) < len(nodes):
            raise ValueError(f"pages {table.pages} are released more often than they were opened")
        self._unpin(open_nodes)

    def check_integrity(self, open_tables: Iterable[PageTable]) -> None:
        """Raise `AssertionError` when the books contradict themselves or the streams now open."""
        pages = [*self._free, *self._nodes, *(self._pending.new_pages if self._pending else ())]
        assert sorted(pages) == list(range(self.num_pages)), "a page is lost or held twice"
        users = Counter(page for table in open_tables for page in table.pages)
        assert users.keys() <= self._nodes.keys(), "an open stream reads a page that is not held"
        assert self._num_in_use == len(users), f"{self._num_in_use} pages in use, not {len(users)}"
        num_linked = len(self._root.children)
        seen: set[_Node] = set()
        for page, node in self._nodes.items():
            assert node.page == page, f"page {page} is filed as {node.page}"
            assert node.users == users[page], f"page {page} has {node.users} users"
            assert 0 < len(node.tokens) <= PAGE_SIZE, f"page {page} holds {len(node.tokens)} tokens"
            assert seen.issuperset(node.children), f"page {page} is older than what follows it"
            _check_children(node)
            seen.add(node)
            num_linked += len(node.children)
        _check_children(self._root)
        assert num_linked == len(self._nodes), "a page hangs on no tree"

    def _match(self, tokens: Sequence[int]) -> tuple[list[_Node], int, _Node | None]:
        """Pages that the stream can use as they are, how many of its tokens are cached, and the
        page of which it shares only the first tokens."""
        path: list[_Node] = []
        parent = self._root
        for start in range(0, len(tokens), PAGE_SIZE):
            wanted = tokens[start : start + PAGE_SIZE]
            children = parent.children
            node = max(children, key=lambda n: shared_length(n.tokens, wanted), default=None)
            shared = 0 if node is None else shared_length(node.tokens, wanted)
            if node is None or not shared:
                return path, start, None
            if shared < min(len(node.tokens), len(wanted)):
                return path, start + shared, node
            path.append(node)
            if shared < PAGE_SIZE:  # it ends in this page, or goes on in its free part
                return path, start + shared, None
            parent = node
        return path, len(tokens), None

    def _allocate(self, count: int, spare: _Node | None = None) -> list[int] | None:
        """Free pages, evicting all but `spare` where necessary; None when there are too few."""
        kept = int(spare is not None and not spare.users)
        if count > len(self._free) + len(self._nodes) - self._num_in_use - kept:
            return None
        while len(self._free) < count:
            # Where nobody uses a page, nobody uses what follows it, which comes first in the order.
            page, node = next(
                (page, node) for page, node in self._nodes.items()
                if not node.users and node is not spare
            )  # fmt: skip
            del self._nodes[page]
            assert node.parent is not None
            node.parent.children.remove(node)
            self._free.append(page)
        return [self._free.pop() for _ in range(count)]

    def _pin(self, nodes: Iterable[_Node]) -> None:
        for node in nodes:
            self._num_in_use += not node.users
            node.users += 1

    def _unpin(self, nodes: Iterable[_Node]) -> None:
        for node in nodes:
            node.users -= 1
            self._num_in_use -= not node.users


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    return next(i for i in range(limit) if a[i] != b[i])


def _num_pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SIZE)


def _check_children(node: _Node) -> None:
    """Only a full page goes on, and no two pages after it could be one."""
    root = node.page < 0
    assert root or not node.children or len(node.tokens) == PAGE_SIZE, (
        f"page {node.page} is not full but continued"
    )
    for child in node.children:
        assert child.parent is node, f"page {child.page} does not know what it continues"
    contents = sorted(child.tokens for child in node.children)
    for one, other in pairwise(contents):
        assert one != other[: len(one)], f"two pages after page {node.page} begin with {one}"
