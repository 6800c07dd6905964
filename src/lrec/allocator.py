"""The C library's allocator: memory that a step of training frees stays with the process, for the next step.

By default glibc hands large blocks back to the system at once. The next step then gets empty pages for them, one fault
after another: a tenth of a step of size 98k on a CPU.
"""

import ctypes

# Options of glibc's mallopt(3), and the largest blocks that every version of it lets stay.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, LARGEST_BLOCK = 2**30, 2**25  # bytes


def keep_freed_memory() -> None:
    """Keep up to a gibibyte of freed blocks of up to 32 MiB; without glibc, nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
