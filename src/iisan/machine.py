"""What this machine is, and what it has given to this process."""

import contextlib
import ctypes
import os
import platform
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iisan.errors import ConfigError

if TYPE_CHECKING:
    import torch


def processor_name() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def choose_device(name: str) -> "torch.device":
    """``auto`` is CUDA where it is there, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Tensors that have no numbers, as those of `meta`, can't be read back.
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError):
        raise ConfigError(
            f"training.device '{name}' cannot be used here",
            "a device that torch finds",
            "use 'auto' or 'cpu'",
        ) from None
    return device


def usable_device(name: str) -> str:
    """A device's name if that device can be used here, else ``auto``: a run may come from another machine."""
    try:
        choose_device(name)
    except ConfigError:
        return "auto"
    return name


def device_name(device: "torch.device") -> str:
    """The name of a GPU, or of the processor."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def first_process() -> bool:
    """Whether this process speaks for those that ``torchrun`` started together, or is alone."""
    return os.environ.get("RANK", "0") == "0"


def peak_resident_bytes() -> int:
    """Largest resident memory of this process, without its children, since :func:`forget_peak`."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: "torch.device") -> None:
    """Have ``peak_memory`` count from now on; outside Linux, that of a process counts from its start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: "torch.device") -> dict[str, Any]:
    """Peak memory of this process, and which: allocated on the ``gpu``, or resident memory of the ``process``."""
    if device.type == "cuda":
        import torch

        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device), "memory": "gpu"}
    return {"peak_memory_bytes": peak_resident_bytes(), "memory": "process"}


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
