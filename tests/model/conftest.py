"""A text and a backbone small enough for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# These tests are too small to gain from threads, and share their machine.
torch.set_num_threads(1)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is no failure of the code.
settings.register_profile("mezzotint", deadline=None, max_examples=60)
settings.load_profile("mezzotint")

CODE = '''\
class Stack:
    """Items, the last one first."""

    def __init__(self, items=()):
        self.items = list(items)

    def push(self, item):
        self.items.append(item)
        return self

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()


def total(numbers):
    result = 0
    for number in numbers:
        if number > 0:
            result += number
    return result
'''


@pytest.fixture(scope="session")
def code() -> str:
    """A short file of Python."""
    return CODE


@pytest.fixture(scope="session")
def checkpoint(tiny_backbone_folder: Path) -> Path:
    """The folder of a tiny random backbone."""
    return tiny_backbone_folder
