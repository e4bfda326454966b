"""What the system says about the machine and this process. Standard library alone: importing it costs nothing."""

from __future__ import annotations

import platform
import resource
import sys
from pathlib import Path


def cpu_name() -> str:
    """The processor as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_mib() -> float:
    """Peak resident memory of this process in MiB (Linux: VmHWM; ru_maxrss would count the parent's)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def page_faults() -> int:
    """Pages that the kernel has handed out: an allocator that gives memory back pays for it again and again."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
