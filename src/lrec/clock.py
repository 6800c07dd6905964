"""Seconds of work: of a CPU in processor time, so that other load counts little; of a GPU until its work is done."""

import time

import torch


def seconds(kind: str) -> float:
    """So many until now; of cpu or cuda. Differences of one thread's work mean something."""
    if kind == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
