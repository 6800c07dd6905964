"""What a command prints, how long it takes, and the memory it needs."""

import json
import subprocess
import sys
import time

# A process in between is needed for two reasons: the peak of children is that of the largest child, and a child's own
# peak is never below the memory that its parent had when it was started.
BETWEEN = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True)
print(json.dumps([done.returncode, done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def measure(command: list[str]) -> tuple[str, float, float]:
    """What a command prints, its wall-clock seconds and its peak memory in GiB; the script ends if it fails."""
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", BETWEEN, *command], stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - start
    status, printed, peak_kib = json.loads(result.stdout)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with {status}")
    return printed, seconds, peak_kib / 2**20
