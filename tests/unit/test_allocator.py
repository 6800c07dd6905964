"""Memory that a step frees is there for the next one, without the system's help."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from lrec.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
MIB = 2**20
for _ in range(2):
    np.ones(8 * MIB, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    blocks = [np.ones(n * MIB, np.uint8) for n in (8, 20)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults while 28 MiB are taken and freed twenty times."""
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_blocks_are_taken_again() -> None:
    pages = 28 * 2**20 // 4096
    assert faults("keep") < 2 * pages < 10 * pages < faults("leave")
