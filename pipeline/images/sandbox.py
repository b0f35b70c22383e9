"""Sandbox for a decoder process: no new files, sockets or processes. Applied after the imports.

    Landlock    no path can be opened, created or removed; no TCP port bound or connected to; no signals or abstract sockets to other
                processes
    seccomp     an allow-list of system calls: memory, threads, time, reading and writing open files. All others fail with EPERM, and so do
                memory that the limit of a process does not count (shared, or growing as a stack does) and signals to other processes

Both can only remove rights, need no privileges, and apply to children; seccomp to all threads, Landlock to the calling one and those it
starts. Codecs are C code that reads untrusted bytes: an attacker who takes over a decoder can only answer on its socket. Needs x86-64 or
arm64, and Linux 5.13 for Landlock; elsewhere the process runs without, and `confine_process` returns what is in effect.

Sources: Linux `include/uapi/linux/{landlock,seccomp,filter,audit}.h`, `Documentation/userspace-api/{landlock,seccomp_filter}.rst`.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import mmap
import os
import platform
import struct

_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_RULESET_VERSION = 1
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_RET_KILL_PROCESS, _RET_ERRNO, _RET_ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000
_LOAD_WORD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_CALL_OFFSET, _ARCHITECTURE_OFFSET, _FIRST_ARGUMENT_OFFSET = 0, 4, 16
_CLONE_THREAD, _MAP_GROWSDOWN = 0x0001_0000, 0x100

_MACHINES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}
"""Column of CALLS, and the kernel's AUDIT_ARCH."""

_SECCOMP, _CLONE, _CLONE3, _MMAP, _TGKILL = (317, 277), (56, 220), (435, 435), (9, 222), (234, 131)
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "readv": (19, 65), "writev": (20, 66),
    "sendto": (44, 206), "recvfrom": (45, 207), "sendmsg": (46, 211), "recvmsg": (47, 212), "poll": (7, None), "ppoll": (271, 73),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216), "madvise": (28, 233),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "setitimer": (38, 103), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "gettimeofday": (96, 169),
    "restart_syscall": (219, 128), "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "membarrier": (324, 283),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getpid": (39, 172), "gettid": (186, 178),
    "getrandom": (318, 278), "getrusage": (98, 165), "sysinfo": (99, 179), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
"""System calls that decoding needs, with their numbers on x86-64 and arm64. Further ones with certain arguments: `_filter`."""


class Sandbox(enum.IntFlag):
    """The mechanisms in effect."""

    NONE = 0
    LANDLOCK = 1
    SECCOMP = 2


def confine_process() -> Sandbox:
    """Sandbox this process, irrevocably, with what the kernel supports.

    Import all modules before: no file can be opened afterwards.

    Returns:
        The mechanisms in effect; NONE if the kernel supports neither.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return Sandbox.NONE
    return _deny_paths(libc) | _deny_calls(libc)


def _deny_paths(libc: ctypes.CDLL) -> Sandbox:
    """Landlock without allow rules: denies everything that the kernel's version can deny."""
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION)
    if abi < 1:
        return Sandbox.NONE
    file_rights = 13 + (abi >= 2) + (abi >= 3) + (abi >= 5)  # REFER, TRUNCATE, IOCTL_DEV came one at a time
    attributes = struct.pack("=Q", (1 << file_rights) - 1)
    if abi >= 4:
        attributes += struct.pack("=Q", 0b11)  # bind and connect of TCP
    if abi >= 6:
        attributes += struct.pack("=Q", 0b11)  # abstract Unix sockets and signals
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return Sandbox.NONE
    return Sandbox.LANDLOCK if libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0 else Sandbox.NONE


def _deny_calls(libc: ctypes.CDLL) -> Sandbox:
    """Seccomp with the allow-list, for all threads."""
    if platform.machine() not in _MACHINES:
        return Sandbox.NONE
    column, architecture = _MACHINES[platform.machine()]
    program = _filter(column, architecture)
    instructions = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    failed = libc.syscall(_SECCOMP[column], _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, head)
    return Sandbox.NONE if failed else Sandbox.SECCOMP


def _filter(column: int, architecture: int) -> bytes:
    """The filter in classic BPF: compares the system call with each allowed number; the default is EPERM."""
    allowed = [number for numbers in _CALLS.values() if (number := numbers[column]) is not None]
    allow, deny = _instruction(_RETURN, _RET_ALLOW), _instruction(_RETURN, _RET_ERRNO | errno.EPERM)
    program = [
        _instruction(_LOAD_WORD, _ARCHITECTURE_OFFSET),
        _instruction(_JUMP_EQUAL, architecture, then=1),
        _instruction(_RETURN, _RET_KILL_PROCESS),
        _instruction(_LOAD_WORD, _CALL_OFFSET),
    ]

    def check(number: int, argument: int, test: bytes) -> list[bytes]:
        """Allow a call if the test of its argument does not jump to the second next instruction."""
        load = _instruction(_LOAD_WORD, _FIRST_ARGUMENT_OFFSET + 8 * argument)
        return [_instruction(_JUMP_EQUAL, number, otherwise=4), load, test, allow, deny]

    for number in allowed:
        program += [_instruction(_JUMP_EQUAL, number, otherwise=1), allow]
    # glibc creates threads with clone3, whose flags a filter cannot check; after ENOSYS it uses clone.
    program += [_instruction(_JUMP_EQUAL, _CLONE3[column], otherwise=1), _instruction(_RETURN, _RET_ERRNO | errno.ENOSYS)]
    program += check(_CLONE[column], 0, _instruction(_JUMP_SET, _CLONE_THREAD, otherwise=1))
    program += check(_MMAP[column], 3, _instruction(_JUMP_SET, mmap.MAP_SHARED | _MAP_GROWSDOWN, then=1))
    program += check(_TGKILL[column], 0, _instruction(_JUMP_EQUAL, os.getpid(), otherwise=1))  # abort() signals itself
    return b"".join([*program, deny])


def _instruction(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)  # struct sock_filter
