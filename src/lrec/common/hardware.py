"""This machine: CPU or GPU, bfloat16, free memory, a clock for work, and the freed memory that a process keeps."""

import ctypes
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from lrec.errors import UserError

Kind = Literal["cpu", "cuda"]
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def kind_of(accelerator: str) -> Kind:
    """The device that training with this `trainer.accelerator` takes; for `auto`, a GPU if this machine has one."""
    if accelerator == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if accelerator in ("gpu", "cuda") else "cpu"


def auto_precision(kind: Kind) -> str:
    """What `--trainer.precision auto` is: bf16-mixed if the device has instructions for bfloat16, otherwise 32-true.
    The environment variable LREC_PRECISION overrides this."""
    import torch

    if chosen := os.environ.get("LREC_PRECISION"):
        return chosen
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "trainer.precision auto: training needs a GPU, but none is here: choose 32-true or bf16-mixed, or "
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
    """Memory in GiB that can be used without swapping: what the machine has, or less if a control group has a limit, as
    in containers and on clusters. 4 if the system does not say."""
    with suppress(OSError, KeyError, ValueError):
        machine = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(machine["MemAvailable"].split()[0]) * 1024
        return max(min([available, *_left_in_groups()]), 0) / 2**30
    return 4.0


def _left_in_groups() -> list[int]:
    """Bytes left up to the limit of each control group of this process (v2 or v1), and of each group above it."""
    left = []
    v1 = GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    v2 = GROUPS, "memory.max", "memory.current", "inactive_file"
    for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines() if OWN_GROUPS.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, limit, used, cache = v1 if controllers else v2
        group = top / path.lstrip("/")
        for each in (group, *group.parents):
            # The folders above `top`, and in a container above its own group, are no groups. Without a limit: "max".
            with suppress(OSError, ValueError, KeyError):
                stat = dict(row.split() for row in (each / "memory.stat").read_text().splitlines())
                left.append(int((each / limit).read_text()) - int((each / used).read_text()) + int(stat[cache]))
    return left


def seconds(kind: str) -> float:
    """A clock for work: processor time on a CPU, so that other load counts little; on a GPU, after its work is done."""
    if kind == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def keep_freed_memory() -> None:
    """With glibc, keep up to 1 GiB of freed blocks of up to 32 MiB. glibc would return them to the system at once, and
    page faults for new ones would take a tenth of the next training step of size 98k on a CPU."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: the largest that every version takes
