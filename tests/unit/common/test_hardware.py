"""Free memory and cores are what the machine and the process's control groups leave; a step reuses freed memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrec.cli import main
from lrec.common import hardware

BLOCKS, STEPS, SETTLING = [20 * 2**20] * 4, 10, 6
FAULTS = f"""
import resource, sys, torch
from lrec.common.hardware import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range({SETTLING} + {STEPS}):
    if step == {SETTLING}:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(n, dtype=torch.uint8) for n in {BLOCKS}]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Number of page faults in steps that allocate some blocks and free them."""
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.slow
def test_freed_blocks_are_reused() -> None:
    pages = STEPS * sum(BLOCKS) // 4096
    assert faults("keep") < pages / 100
    assert faults("leave") > pages / 2


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.mark.parametrize("own", ["0::/pod/job", "0::/of/the/host", "7:cpu:/pod\n4:memory:/pod/job"])
def test_free_memory_is_what_the_control_groups_leave(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = tmp_path / "cgroup"
    monkeypatch.setattr(hardware, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(hardware, "GROUPS", mount)
    machine = hardware.available_gib()
    (tmp_path / "own").write_text(own + "\n")
    assert hardware.available_gib() == pytest.approx(machine, rel=0.5), "no group here has a limit"
    gib = 2**30
    if "memory" in own:
        write(mount / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=gib)
        write(mount / "memory/pod", memory__limit_in_bytes=gib // 2, memory__usage_in_bytes=gib // 4)
        write(mount / "memory/pod", memory__stat=f"cache 3\ntotal_inactive_file {gib // 8}")
    else:
        write(mount / "pod/job", memory__max="max", memory__current=gib // 8, memory__stat="anon 3\ninactive_file 0")
        group = mount / "pod" if "pod" in own else mount
        write(group, memory__max=gib // 2, memory__current=gib // 4, memory__stat=f"anon 3\ninactive_file {gib // 8}")
    assert hardware.available_gib() == 0.375


@pytest.mark.parametrize("own", ["0::/pod/job", "5:cpu,cpuacct:/pod/job"])
@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.5, 2), (64, 64), (256, 100)])
def test_cores_are_what_a_quota_allows(
    own: str, quota: float, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(100))
    monkeypatch.setattr(hardware, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(hardware, "GROUPS", tmp_path / "cgroup")
    (tmp_path / "own").write_text(own + "\n")
    assert hardware.cores() == 100, "no group here has a quota"
    if "cpuacct" in own:
        write(tmp_path / "cgroup/cpu/pod/job", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
        write(tmp_path / "cgroup/cpu/pod", cpu__cfs_quota_us=int(quota * 50_000), cpu__cfs_period_us=50_000)
    else:
        write(tmp_path / "cgroup/pod/job", cpu__max="max 100000")
        write(tmp_path / "cgroup/pod", cpu__max=f"{int(quota * 50_000)} 50000")
    assert hardware.cores() == cores


@pytest.mark.parametrize(("given", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")])
def test_torch_has_a_thread_for_each_allowed_core(
    given: dict[str, str], threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]} | given)
    main(["--version"])
    assert os.environ["OMP_NUM_THREADS"] == threads


def test_other_work_leaves_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen by more threads than there are cores: each gets a part of one."""
    monkeypatch.setattr(hardware, "LOAD_S", 0.2)
    hardware.free_share.cache_clear()
    n = hardware.cores()
    assert 0 < hardware.free_share(n) <= 1
    assert hardware.free_share(8 * n) < 0.2
    hardware.free_share.cache_clear()
