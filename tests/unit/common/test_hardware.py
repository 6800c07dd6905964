"""Memory that a step frees is there for the next one, without the system's help."""

import subprocess
import sys

import pytest

BLOCKS, STEPS = [20 * 2**20] * 4, 10
FAULTS = f"""
import resource, sys, torch
from lrec.common.hardware import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range({STEPS} + 2):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(n, dtype=torch.uint8) for n in {BLOCKS}]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of steps that take some blocks and free them."""
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_blocks_are_taken_again() -> None:
    pages = STEPS * sum(BLOCKS) // 4096
    assert faults("keep") < pages / 100
    assert faults("leave") > pages / 2
