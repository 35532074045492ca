"""The machine: processor, device, memory."""

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
    """Name of the processor as reported by the system."""
    return _entry("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _entry(path: str, key: str) -> str | None:
    """First value of a key in a file of ``key: value`` lines; None without the file or the key."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def choose_device(name: str) -> "torch.device":
    """Return the named device; ``auto`` is CUDA if available, else the CPU.

    Raises:
        ConfigError: The device cannot be used here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Tensors without values, such as those of `meta`, can't be read back.
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError):
        raise ConfigError(
            f"training.device '{name}' cannot be used here", "a device that torch finds", "use 'auto' or 'cpu'"
        ) from None
    return device


def usable_device(name: str) -> str:
    """Return a device's name if it can be used here, else ``auto``: a run may come from another machine."""
    try:
        choose_device(name)
    except ConfigError:
        return "auto"
    return name


def device_name(device: "torch.device") -> str:
    """Name of the GPU, or of the processor."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def first_process() -> bool:
    """Whether this is the first, or the only, of the processes started by ``torchrun``."""
    return os.environ.get("RANK", "0") == "0"


def peak_resident_bytes() -> int:
    """Peak resident memory of this process, without its children, since :func:`forget_peak`."""
    if peak := _entry("/proc/self/status", "VmHWM"):
        return int(peak.split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: "torch.device") -> None:
    """Reset ``peak_memory``. Outside Linux, that of a process cannot be reset."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: "torch.device") -> dict[str, Any]:
    """Peak memory of this process, and its kind: allocated on the ``gpu``, or resident for the ``process``."""
    if device.type == "cuda":
        import torch

        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device), "memory": "gpu"}
    return {"peak_memory_bytes": peak_resident_bytes(), "memory": "process"}


def wait_briefly() -> None:
    """Shorten the busy waiting of OpenMP threads, unless the environment sets it; call before torch is loaded.

    Otherwise, beside another busy process, a thread of GNU's OpenMP spins for milliseconds after every operator,
    on the processor that the thread it waits for would need.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, for a loop that frees and allocates the same tensors many times.

    Otherwise the system provides every large tensor page by page, filled with zeros, which can take longer than
    the computation itself. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        # M_MMAP_THRESHOLD at its maximum, and M_TRIM_THRESHOLD; see mallopt(3).
        library.mallopt(-3, 32 * 2**20)
        library.mallopt(-1, 2**31 - 1)
