"""Reading histories from a Parquet file takes the memory of one slice, however many histories it has."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

READ = """
import sys
from pathlib import Path
from lrec.data.histories import histories_in
from lrec.data.formats.readers import Columns

columns = Columns("user", "item", None)
users = sum(len(block.users) for block in histories_in(Path(sys.argv[1]), None, columns, columns))
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(users, int(peak) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("row_group_size", [20_000, None])
def test_memory_does_not_grow_with_the_number_of_users(row_group_size: int | None, tmp_path: Path) -> None:
    peaks = []
    for number in (100_000, 400_000):
        users = pl.int_range(number, eager=True)
        file = tmp_path / f"{number}.parquet"
        pl.DataFrame({"user": users.cast(pl.String)}).with_columns(
            pl.concat_list(*[((pl.lit(users) * 7 + place) % 997).cast(pl.String) for place in range(20)]).alias("items")
        ).write_parquet(file, row_group_size=row_group_size)
        printed = subprocess.run([sys.executable, "-c", READ, str(file)], capture_output=True, text=True, check=True)
        read, peak = printed.stdout.split()
        assert int(read) == number
        peaks.append(float(peak))
    assert peaks[1] < peaks[0] + 0.1, peaks
