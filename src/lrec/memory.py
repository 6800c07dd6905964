"""How much memory is free."""

from pathlib import Path

_GIB = 2**30


def available_gib() -> float:
    """Memory that can be used without swapping, in GiB; 4 where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 4.0
    return available * 1024 / _GIB
