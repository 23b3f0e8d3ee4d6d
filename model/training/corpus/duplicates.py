"""Near-duplicates by MinHash and locality-sensitive hashing (Broder, 1997; Lee et al., 2022)."""

from __future__ import annotations

import hashlib
import re

from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]: no stubs

SHINGLE_WORDS = 5
PERMUTATIONS = 128
BANDS = 16
SIMILARITY = 0.7
"""Files whose sets of shingles have at least this Jaccard index are the same file to us."""


class DuplicateFinder:
    """Remembers files, and says of each new one whether it or nearly it was there before."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._sketches: list[RMinHash] = []
        self._index = RMinHashLSH(SIMILARITY, PERMUTATIONS, BANDS)

    def seen(self, text: str) -> str | None:
        """ "duplicate" (but for white space), "near-duplicate", or None: then it is remembered."""
        digest = content_digest(text)
        if digest in self._digests:
            return "duplicate"
        self._digests.add(digest)
        words = re.findall(r"\w+|[^\w\s]", text)
        shingles = {
            " ".join(words[i : i + SHINGLE_WORDS])
            for i in range(max(1, len(words) - SHINGLE_WORDS + 1))
        }
        sketch = RMinHash(PERMUTATIONS, 1)
        sketch.update(list(shingles))
        if any(self._sketches[i].jaccard(sketch) >= SIMILARITY for i in self._index.query(sketch)):
            return "near-duplicate"
        self._index.insert(len(self._sketches), sketch)
        self._sketches.append(sketch)
        return None


def content_digest(text: str) -> bytes:
    """SHA-256 of a file's words, whatever the white space between them."""
    return hashlib.sha256(" ".join(text.split()).encode()).digest()
