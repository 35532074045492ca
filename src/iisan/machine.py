"""What this machine is, and what it has given to this process."""

import contextlib
import ctypes
import os
import platform
import resource
import sys
from pathlib import Path


def processor_name() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def first_process() -> bool:
    """Whether this process speaks for those that ``torchrun`` started together, or is alone."""
    return os.environ.get("RANK", "0") == "0"


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far, and of its largest finished child."""
    unit = 1 if sys.platform == "darwin" else 1024
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + children) * unit


def forget_peak() -> None:
    """Have ``peak_resident_bytes`` count from now on, where the system can do that for this process (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def wait_briefly() -> None:
    """Have threads that wait for each other give their processor away soon; to be called before torch is loaded.

    Otherwise, next to another process that computes, a thread of GNU's OpenMP spins for milliseconds after every
    operator, on the processor that the thread it waits for would need. What the environment says already stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_freed_memory() -> None:
    """Have the C library keep what it is given back, for a loop that frees and takes the same tensors many times.

    Otherwise every large tensor comes from the system, page by page and filled with zeros, which can take longer
    than what is computed with it. Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        # M_MMAP_THRESHOLD at its largest and M_TRIM_THRESHOLD, see mallopt(3).
        library.mallopt(-3, 32 * 2**20)
        library.mallopt(-1, 2**31 - 1)
