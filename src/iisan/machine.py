"""What this machine is, and what it has given to this process."""

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
