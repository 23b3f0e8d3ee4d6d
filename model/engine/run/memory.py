"""What running out of memory looks like."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch or a shorter window might have worked."""
    # torch's own error is a RuntimeError of this name, and not only CUDA raises it.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )
