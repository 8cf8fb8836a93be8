"""How a process that decodes image after image keeps its memory."""

from __future__ import annotations

import ctypes
import functools

# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE, _LARGEST_OF_OLD_GLIBC = 2**30, 2**25


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library hold on to freed memory, and use it again, from now on in this process.

    By default glibc asks the kernel for each large array and gives it back when it is freed. Each
    batch is then written to pages that the kernel must find and clear first, which costs a third of
    the CPU time where images are large. The process keeps what its largest block of batches took.

    Other C libraries have no such setting; nothing happens there.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if not mallopt(_M_MMAP_THRESHOLD, _LARGE):
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_OLD_GLIBC)
    mallopt(_M_TRIM_THRESHOLD, _LARGE)
