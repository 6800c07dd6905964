"""This machine: CPU or GPU, bfloat16, cores and their load, free memory, a clock for work, and the freed memory that a
process keeps."""

import ctypes
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

from lrec.errors import UserError

Kind = Literal["cpu", "cuda"]
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
LOAD_S = 1.0  # time to measure the load


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


def cores() -> int:
    """CPU cores that this process may use: those of its affinity, or fewer if a control group has a quota, as in
    containers and on clusters."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for group, is_v1 in _groups("cpu"):
        with suppress(OSError, ValueError):  # without a quota: -1 or "max"
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_v1 else ("cpu.max",)
            quota, period = " ".join((group / file).read_text() for file in files).split()
            counts += [math.ceil(int(quota) / int(period))] if int(quota) > 0 else []
    return min(counts)


@cache
def free_share(n: int) -> float:
    """The share of n cores that this process gets if it works on all of them: less than 1 if other programs work too.
    Measured once, in a second."""
    import hashlib  # here, because every command imports this module
    from concurrent.futures import ThreadPoolExecutor

    began, worked, block = time.perf_counter(), time.process_time(), bytes(2**20)

    def work(_: int) -> None:
        while time.perf_counter() - began < LOAD_S:
            hashlib.blake2b(block)  # other threads work meanwhile

    with ThreadPoolExecutor(n) as pool:
        list(pool.map(work, range(n)))
    return min((time.process_time() - worked) / (n * (time.perf_counter() - began)), 1.0)


def available_gib() -> float:
    """Memory in GiB that can be used without swapping: what the machine has, or less if a control group has a limit, as
    in containers and on clusters. 4 if the system does not say."""
    with suppress(OSError, KeyError, ValueError):
        machine = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(machine["MemAvailable"].split()[0]) * 1024
        return max(min([available, *_left_in_groups()]), 0) / 2**30
    return 4.0


def _left_in_groups() -> list[int]:
    """Bytes left up to the limit of each control group of this process."""
    left = []
    for group, is_v1 in _groups("memory"):
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_v1 else ("memory.max", "memory.current")
        # Without a limit: "max".
        with suppress(OSError, ValueError, KeyError):
            stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
            cached = int(stat["total_inactive_file" if is_v1 else "inactive_file"])
            left.append(int((group / limit).read_text()) - int((group / used).read_text()) + cached)
    return left


def _groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """The folder of each control group of this process and of each group above it, and whether it has version 1. The
    folders above GROUPS, and in a container above its own group, are no groups and lack the files of one."""
    for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines() if OWN_GROUPS.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            group = (GROUPS / controller if controllers else GROUPS) / path.lstrip("/")
            yield from ((each, bool(controllers)) for each in (group, *group.parents))


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
