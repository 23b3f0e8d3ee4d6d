"""Runs in a child process of its own: gives up its rights, then becomes the program under test.

    python -I confine.py '{"command": […], "directory": …, "namespaces": …, "user": …, "limits": …}'

Imports the standard library only, and nothing of ours: it runs without our packages in sight.
Exits with `NOT_CONFINED` when it could not give up what it was told to, and runs nothing then.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

NOT_CONFINED = 125

# Of linux/sched.h, sys/mount.h, linux/mount.h, linux/prctl.h and linux/capability.h.
_NEW_MOUNTS, _NEW_IPC, _NEW_USER = 0x00020000, 0x08000000, 0x10000000
_NEW_PIDS, _NEW_NETWORK = 0x20000000, 0x40000000
_MS_BIND, _MS_RECURSIVE, _MS_PRIVATE = 4096, 16384, 1 << 18
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_PDEATHSIG, _KEEP_CAPABILITIES, _NO_NEW_PRIVILEGES = 1, 8, 38
_AMBIENT, _AMBIENT_RAISE, _READ_ANY_FILE = 47, 2, 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Confine this process as the argument says and become its command."""
    wanted = json.loads(sys.argv[1])
    try:
        if wanted["namespaces"]:
            _unshare(wanted["directory"])
            _become_child()  # the first process of the new PID namespace: all die with it
            _become_child()
        os.chdir(wanted["directory"])
        if wanted["user"] is not None:
            _become_user(wanted["user"])
        _prctl(_NO_NEW_PRIVILEGES, 1)
        _set_limits(wanted["limits"])
    except OSError as error:
        print(f"confine: {error}", file=sys.stderr)
        os._exit(NOT_CONFINED)
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": wanted["directory"],
        "TMPDIR": wanted["directory"],
        "LC_ALL": "C.UTF-8",
    }
    os.execve(wanted["command"][0], wanted["command"], environment)


def _unshare(directory: str) -> None:
    """No network, no other processes in reach, and nothing writable but `directory`."""
    flags = _NEW_MOUNTS | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK
    user, group = os.getuid(), os.getgid()
    if user != 0:
        flags |= _NEW_USER
    _check(_libc.unshare(flags), "unshare")
    if user != 0:
        for file, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{file}", "w") as stream:
                stream.write(text)
    place = os.fsencode(directory)
    _check(_libc.mount(b"none", b"/", None, _MS_RECURSIVE | _MS_PRIVATE, None), "mount /")
    _check(_libc.mount(place, place, None, _MS_BIND, None), f"mount {directory}")
    _set_mount(b"/", _AT_RECURSIVE, add=_READ_ONLY)
    _set_mount(place, 0, remove=_READ_ONLY)


def _set_mount(path: bytes, flags: int, *, add: int = 0, remove: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(add, remove, 0, 0)  # struct mount_attr
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    done = _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path, flags, attributes, size)
    _check(done, f"mount_setattr {os.fsdecode(path)}")


def _become_child() -> None:
    """Go on as a child; the parent stays only to hand on how it ended."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)  # as shells report a signal
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1 and os.getpid() != 2:  # the parent died before we asked to die with it
        os._exit(NOT_CONFINED)


def _become_user(user: int) -> None:
    """Root is subject to no process limit: become somebody else, who may still read every file
    (root's own Python lies where others cannot look), but write none."""
    _prctl(_KEEP_CAPABILITIES, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    bit = 1 << _READ_ANY_FILE
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable
    _check(_libc.capset(header, data), "capset")
    _prctl(_AMBIENT, _AMBIENT_RAISE, _READ_ANY_FILE)


def _set_limits(limits: dict[str, int]) -> None:
    import resource  # not on Windows, where the parent says so first

    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(number)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (most, most))


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(option, *padded), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
