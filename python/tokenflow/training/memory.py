"""Memory that a step frees is kept for the next one, which asks for the same.

The C library gives large blocks back to the system at once, and the next step's first
touch of every page is a fault again: on CPUs a fifth of a step with large logits.
"""

import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory in this process; False where it is not glibc."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  musl has mallopt too, and ignores it
        adjust = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(adjust(MMAP_MAX, 0) and adjust(TRIM_THRESHOLD, NEVER))
