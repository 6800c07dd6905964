"""Lines and files by folder, before the folders and now, and what became of lrec's own code.

The lines and files are those of git, at the last commit before src/lrec had folders for its subjects, and now. The
script also measures what some of lrec's own code saves beside the library that could replace it: processor times of one
thread, the least of two.

    pip install --target /tmp/pooch pooch
    OMP_NUM_THREADS=1 PYTHONPATH=/tmp/pooch python benchmarks/house.py
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import torch

from lrec.common.files import write_text
from lrec.common.text_tables import rows_table
from lrec.ranking.common_order import CommonOrder, Leading

HERE = Path(__file__).parent
PAGE, SOURCE = HERE / "house.md", "src/lrec"
# The parent of the commit that made the folders; the commit with the fewest lines since then, of every twelfth.
BEFORE, LEAST = "72695c34", "1a7160e8"
SMALL_FILE, REPEATS = 60, 2
ITEMS, ROWS, LISTED, LED = 57_000, 256, 100, 20


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True, check=True).stdout


def lines_of(commit: str) -> dict[PurePosixPath, int]:
    """The lines of each file of src/lrec."""
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit, SOURCE))) as archive:
        files = {each.name: archive.extractfile(each) for each in archive if each.isfile()}
        named = {PurePosixPath(name).relative_to(SOURCE): file for name, file in files.items()}
        return {name: file.read().count(b"\n") for name, file in named.items() if file is not None}


def folders(before: dict[PurePosixPath, int], now: dict[PurePosixPath, int]) -> str:
    """Files and lines of Python by folder, and of templates in all."""
    sides = (before, now)
    python = [{file: lines for file, lines in side.items() if file.suffix == ".py"} for side in sides]
    places = sorted({file.parent for side in python for file in side})
    rows = [["folder", "files before", "lines before", "files now", "lines now"]]

    def row(title: str, chosen: list[list[int]]) -> list[str]:
        return [title, *(f"{figure:,}" if each else "" for each in chosen for figure in (len(each), sum(each)))]

    for place in places:
        name = f"{place}/" if place.name else "directly in src/lrec"
        rows.append(row(name, [[lines for file, lines in side.items() if file.parent == place] for side in python]))
    rows.append(row("**all Python**", [list(side.values()) for side in python]))
    templates = [[lines for file, lines in side.items() if file.suffix == ".j2"] for side in sides]
    rows.append(row("templates (Jinja)", templates))
    return rows_table(rows, text=(0,))


def shape(files: dict[PurePosixPath, int]) -> tuple[int, int, int]:
    """Most Python files directly in one folder, files of few lines, and lines of the longest file."""
    python = {file: lines for file, lines in files.items() if file.suffix == ".py"}
    most = max(Counter(file.parent for file in python).values())
    few = sum(lines < SMALL_FILE for file, lines in python.items() if file.name != "__init__.py")
    return most, few, max(python.values())


def imported(modules: str) -> str:
    """Seconds and modules of an import in a new process."""
    code = f"import sys, time; import {modules}; print(time.process_time(), len(sys.modules))"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(REPEATS)
    ]
    seconds, count = min((float(run.stdout.split()[0]), int(run.stdout.split()[1])) for run in runs)
    return f"{seconds:.2f} s, {count:,} modules"


def downloads(code: str) -> int:
    """How often two processes download one file of 64 MB if they ask for it at once."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.endswith(".bin"):
                self.send_error(404)
                return
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(64 << 20))
            self.end_headers()
            for _ in range(64):
                self.wfile.write(bytes(1 << 20))
                time.sleep(0.02)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        program = code.format(url=f"http://127.0.0.1:{server.server_port}/log.bin", folder=folder)
        both = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) for _ in range(2)]
        assert not any(process.wait() for process in both)
    server.shutdown()
    return len(asked)


def ranked() -> tuple[float, float]:
    """Milliseconds for a batch of ranks and lists of a baseline: in closed form, and from a score for each item."""
    draw = torch.Generator().manual_seed(0)
    common_V = torch.rand(ITEMS, generator=draw)
    items_BL = torch.randint(ITEMS, (ROWS, LED), generator=draw).sort().values
    targets_B = torch.randint(ITEMS, (ROWS,), generator=draw)
    rows_R = torch.arange(ROWS).repeat_interleave(LED)
    scores_R = torch.rand(ROWS * LED, generator=draw).double()
    order = CommonOrder(common_V)

    def closed() -> None:
        order.ranked(targets_B, LISTED, Leading(rows_R, items_BL.flatten(), scores_R))

    def dense() -> None:
        scores_BV = (common_V - 1).expand(ROWS, -1).clone()
        scores_BV[rows_R, items_BL.flatten()] = scores_R.float() + 1
        of_target_B1 = scores_BV.gather(1, targets_B[:, None])
        (scores_BV > of_target_B1).sum(1), (scores_BV == of_target_B1).sum(1)
        scores_BV.topk(LISTED)

    return milliseconds(closed), milliseconds(dense)


def milliseconds(work: Callable[[], None]) -> float:
    least = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        least = min(least, 1000 * (time.process_time() - began))
    return least


def candidates() -> str:
    """What was to go unless a figure defends it: what became of each."""
    lrec_fetch = imported("lrec.data.sources.download")
    pooch = imported("pooch, requests")
    writer = imported("tensorboard.summary.writer.event_file_writer, tensorboard.compat.proto.summary_pb2")
    summary_writer = imported("torch.utils.tensorboard")
    ours, theirs = (
        downloads(
            "import pathlib, lrec.data.sources.download as d; d.fetch('{url}', pathlib.Path('{folder}/log.bin'))"
        ),
        downloads("import pooch; pooch.retrieve('{url}', None, fname='log.bin', path='{folder}', progressbar=False)"),
    )
    closed, dense = ranked()
    rows = [["own code", "library or simpler way", "what became of it", "measured, or why"]]
    rows += [
        [
            "sharded checkpoint format, hashes, thread",
            "`torch.distributed.checkpoint`, `AsyncCheckpointIO`",
            "stays",
            "the libraries read damaged and lost shards without an error, run a stranger's code, or hold a copy for "
            "each save ([checkpoint_libraries.md](checkpoint_libraries.md))",
        ],
        [
            "batched descent in laws",
            "scipy's trust region",
            "went for fits, stays for the refits of two ladders",
            "1,000 refits take 1.7 s with lrec and 139 s with scipy ([laws.md](laws.md))",
        ],
        [
            "linear program that polishes absolute deviations, vertex, diagnosis by two routes",
            "reweighted squares, one search",
            "went",
            "43d98ede, c93ba85f: of 411 fits to public tables, scipy ended none more than 1e-6 higher, in 45 s and "
            "not 123 s",
        ],
        ["bootstrap beside profile intervals", "profile alone", "went", "43d98ede: no report showed its intervals"],
        [
            "shortlist in bfloat16",
            "float32 alone",
            "went",
            "b085ae3f: it saved a third of recommending's time on few processors, for a tenth of the ranking's lines",
        ],
        [
            "best items above a threshold",
            "`torch.topk`",
            "stays",
            "with `torch.topk`, evaluation takes 1.6 to 2.2 times as long, and lists of 200 items 4 to 9 times",
        ],
        ["second class for seen items", "one class for every device", "went", "feb7fb4f; no figure"],
        [
            "setting of the allocator",
            "glibc's default",
            "stays",
            "204,480 page faults in ten steps by default, at most 25,600 with it (1b2aa038); they take a tenth of a "
            "step of the size 98k",
        ],
        [
            "baselines in closed form",
            "a score for each item, `torch.topk`",
            "stays",
            f"{ROWS} ranks and lists of {LISTED} items among {ITEMS:,} take {closed:.1f} ms, and {dense:.0f} ms with a "
            "score for each item",
        ],
        ["cache of the baselines' figures", "compute again", "went", "1a7160e8: a test of Beauty takes 17 s, not 14 s"],
        [
            "option rewriting",
            "jsonargparse",
            "went in part",
            "5c28e400: jsonargparse parses entries of dictionaries itself; no figure for what stays",
        ],
        [
            "errors rewritten by patterns",
            "jsonargparse's messages",
            "stays",
            "no figure: it names the option as the user gave it, in one line",
        ],
        [
            "throughput, MFU",
            "Lightning's `ThroughputMonitor`",
            "stays, with 136 lines and not 244",
            "the peak rates in its table are those of sparse products, twice what a dense step can reach",
        ],
        [
            "event files of pictures and texts",
            "`SummaryWriter`",
            "stays",
            f"importing TensorBoard's writer takes {writer}; torch's `SummaryWriter` takes {summary_writer}. Commands "
            "that fit laws do not import torch",
        ],
        [
            "items in the projector",
            "`SummaryWriter.add_embedding`",
            "stays",
            "10,000 items of width 1,024 take 0.1 s and 39 MiB, and 10 s and 192 MiB with the library (1b2aa038)",
        ],
        [
            "texts of reports, Markdown on a terminal",
            "Jinja, rich",
            "went in part",
            "templates write pages and the card. Markdown on a terminal stays: 20 lines, no dependency; no figure",
        ],
        [
            "download",
            "pooch",
            "stays, without resuming",
            f"cb9c042f: what resumed a download was half of its code. For two processes that ask for one file at "
            f"once, lrec makes {ours} download and pooch {theirs}. Imports: {lrec_fetch}; pooch with requests {pooch}",
        ],
        ["readers of formats that no release wrote", "none", "went", "34271b37, a34ba75e, 5c28e400"],
        ["two fork servers", "one", "went", "ab77d29a: tests start their processes through the server of studies"],
    ]
    return rows_table(rows, text=range(4))


def main() -> None:
    """Write the page."""
    title, method, commands = __doc__.rstrip().split("\n\n")
    commit = git("log", "-1", "--format=%h", "--", SOURCE).decode().strip()
    before, least, now = (lines_of(each) for each in (BEFORE, LEAST, commit))
    rows = [["", "before", "now"]]
    shapes = zip(
        ("Python files directly in one folder, at most", f"files of fewer than {SMALL_FILE} lines", "longest file"),
        shape(before),
        shape(now),
        strict=True,
    )
    rows += [[name, *map(str, figures)] for name, *figures in shapes]
    fewest = sum(lines for file, lines in least.items() if file.suffix == ".py")
    said = (
        f"Before is {BEFORE} (29 November), now is {commit}. Lines are all lines of a file. At most 20,000 lines of "
        f"Python were wanted, and there are more. {LEAST} (29 November, too) had {fewest:,}, without what came since "
        "then: features of events, users and items, evaluation and backtests over time, updates, studies by hours and "
        "their answers, exchange rates, Muon."
    )
    parts = [f"# {title.rstrip('.')}", method.replace("\n", " "), commands, said, folders(before, now)]
    parts += [rows_table(rows, text=(0,)), "## What was to go, unless a figure defends it", candidates(), READ.strip()]
    write_text(PAGE, "\n\n".join(parts) + "\n")


READ = """
Eight hexadecimal digits name a commit that says more; 1b2aa038 removed a page (docs/decisions.md) that had the figures.
[Internals](../docs/internals.md#own-code-where-a-library-exists) has those of `torch.topk`. This script measured
those of baselines, event files and downloads, on a busy machine.
"""


if __name__ == "__main__":
    main()
