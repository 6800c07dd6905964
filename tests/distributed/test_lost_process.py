"""If a process is killed or hangs and no launcher watches over all, the others end soon, with one line."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import environment, fit_command
from test_cluster import free_port, wait_for_steps

from lrec.training.strategies import is_loss_of_a_process

PATIENCE_S = 10
SHARDED = {"class_path": "lrec.FSDP2", "init_args": {"timeout_minutes": PATIENCE_S / 60}}


@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGSTOP, marks=pytest.mark.slow), signal.SIGKILL], ids=["hangs", "killed"]
)
def test_the_other_one_ends_within_its_patience(
    how: signal.Signals, folder: Path, request: pytest.FixtureRequest
) -> None:
    if how == signal.SIGKILL:  # it ends a warm process too; SIGSTOP would stop only its stand-in
        request.getfixturevalue("warm_processes")
    run = folder / f"lost-{how.name}"
    nodes = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    options = ["--trainer.num_nodes=2", "--trainer.max_steps=100000", "--last.every_n_steps=3", "--ckpt_path=last"]
    command = fit_command(folder, run, 1, *options, f"--trainer.strategy={json.dumps(SHARDED)}")
    processes = [
        subprocess.Popen(
            command,
            env=environment() | nodes | {"NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        wait_for_steps(run, processes)
        processes[1].send_signal(how)
        lost = time.monotonic()
        printed = processes[0].communicate(timeout=100)[0]
        assert time.monotonic() - lost < PATIENCE_S + 60, "Lightning's own is half an hour"
        assert processes[0].returncode == 1, printed
        lines = [line for line in printed.splitlines() if line.startswith("lrec: ")]
        assert len(lines) == 1, printed
        assert lines[0].startswith("lrec: another process is gone or hangs (")
        assert lines[0].endswith("): go on with --ckpt_path=last")
        assert "Traceback" not in printed
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_lost_process_is_recognised_by_gloo_s_messages() -> None:
    for words, lost in (
        ("[/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for send operation to complete", True),
        ("Application timeout caused pair closure", True),
        ("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory", False),
    ):
        assert is_loss_of_a_process(RuntimeError(words)) == lost
