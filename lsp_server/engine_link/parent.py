"""Whether the editor that started us is still there."""

from __future__ import annotations

import os
import sys


def process_exists(process_id: int) -> bool:
    """Whether a process runs, whoever owns it."""
    if sys.platform == "win32":
        # There, `os.kill` with any signal ends the process.
        import ctypes

        synchronize, timed_out = 0x00100000, 0x102
        handle = ctypes.windll.kernel32.OpenProcess(synchronize, False, process_id)
        if not handle:
            return False
        alive = ctypes.windll.kernel32.WaitForSingleObject(handle, 0) == timed_out
        ctypes.windll.kernel32.CloseHandle(handle)
        return alive
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
