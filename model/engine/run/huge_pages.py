"""Memory in pages of 2 MiB.

A forward of few rows reads all weights once. In pages of 4 KiB, which is what an allocator gets
where Linux grants large ones only to who asks, the look-up of addresses takes as long as the
reading: 3 to 6 GB/s against 7 to 13 on a virtual machine.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_SIZE = 2 << 20
_FILLED = 0.9
"""Part of a mapping that has to be in use: the rest would be memory for nothing."""


def use_huge_pages() -> int:
    """Ask for large pages for what this process holds, and have it moved into them at once where
    the kernel can (Linux 6.1). Returns the bytes asked for. Harmless, and 0 where there are none.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        advise = ctypes.CDLL(None).madvise
        mappings = list(_filled_mappings())
    except (OSError, AttributeError, ValueError):
        return 0
    total = 0
    for start, end in mappings:
        first, last = -(-start // _SIZE) * _SIZE, end // _SIZE * _SIZE
        if first < last:
            for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
                advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)
            total += last - first
    return total


def give_back_memory() -> None:
    """Return to the system what was freed; the C library of Linux keeps it for later otherwise."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _filled_mappings() -> Iterator[tuple[int, int]]:
    """First and last address of the private memory without a file that is nearly all in use."""
    with open(f"/proc/{os.getpid()}/smaps", encoding="ascii", errors="replace") as lines:
        start = end = 0
        for line in lines:
            header = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0\s*(\[heap\])?\s*$", line)
            if header:
                start, end = int(header[1], 16), int(header[2], 16)
            elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                start = end = 0
            elif line.startswith("Rss:"):
                filled = int(line.split()[1]) * 1024
                if end - start >= _SIZE and filled >= _FILLED * (end - start):
                    yield start, end
