"""How the C library gives memory back."""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
MIB = 2**20


def keep_freed_memory() -> None:
    """Let the process reuse what it freed, instead of giving it back and having the kernel zero it again.

    A step on a CPU allocates and frees the same activations over and over, each of a few MiB, which glibc by itself
    maps and unmaps each time: about 8% of a step. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for option, size in ((MMAP_THRESHOLD, 32 * MIB), (TRIM_THRESHOLD, 512 * MIB), (TOP_PAD, 64 * MIB)):
            mallopt(option, size)
