"""What this machine has: CPU or GPUs, bfloat16, free memory, the time that work takes, memory kept by a process."""

import ctypes
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from lrec.errors import UserError

Kind = Literal["cpu", "cuda"]
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

# Options of glibc's mallopt(3), and the largest blocks that every version of it lets stay.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, LARGEST_BLOCK = 2**30, 2**25  # bytes


def kind_of(accelerator: str) -> Kind:
    """The device that training with this `trainer.accelerator` takes; for `auto`, a GPU if this machine has one."""
    if accelerator == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if accelerator in ("gpu", "cuda") else "cpu"


def auto_precision(kind: Kind) -> str:
    """What `--trainer.precision auto` is: bfloat16 products where there are instructions for them. The environment's
    LREC_PRECISION goes before."""
    import torch

    if chosen := os.environ.get("LREC_PRECISION"):
        return chosen
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "trainer.precision auto: training takes a GPU, and none is here: choose 32-true or bf16-mixed, or "
            "trainer.accelerator cpu"
        )
    return "bf16-mixed" if has_bfloat16(kind) else "32-true"


def has_bfloat16(kind: Kind) -> bool:
    """Whether the processor or the GPU has instructions for bfloat16; without them products take many times as long."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(there for name, there in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def available_gib() -> float:
    """Memory that can be used without swapping, in GiB: what the machine has, or what is left of the least limit of a
    control group, as containers and clusters set them; 4 where the system does not tell."""
    with suppress(OSError, KeyError, ValueError):
        machine = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(machine["MemAvailable"].split()[0]) * 1024
        return max(min([available, *_left_in_groups()]), 0) / 2**30
    return 4.0


def _left_in_groups() -> list[int]:
    """Bytes that each control group of this process (v2 or v1), and each above it, leaves up to its limit."""
    left = []
    for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines() if OWN_GROUPS.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, limit, used, cache = (
            (GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else (GROUPS, "memory.max", "memory.current", "inactive_file")
        )
        group = top / path.lstrip("/")
        for each in (group, *group.parents):
            # In a container the groups above its own are not there; where there is no limit, it is "max".
            with suppress(OSError, ValueError, KeyError):
                stat = dict(row.split() for row in (each / "memory.stat").read_text().splitlines())
                left.append(int((each / limit).read_text()) - int((each / used).read_text()) + int(stat[cache]))
            if each == top:
                break
    return left


def seconds(kind: str) -> float:
    """A clock for work: processor time on a CPU, so that other load counts little; a GPU's once its work is done."""
    if kind == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def keep_freed_memory() -> None:
    """Keep up to a gibibyte of freed blocks of up to 32 MiB with the process, where there is glibc, which hands them
    back at once: the next step of training got empty pages, a fault each, a tenth of a step of size 98k on a CPU."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
