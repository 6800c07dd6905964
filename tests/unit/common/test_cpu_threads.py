"""Threads with one core each give the same results, and leave torch as it was."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from lrec.common.cpu_threads import mapped
from lrec.ranking.scoring import score


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_torch_keeps_its_threads(threads: int) -> None:
    def of(number: int) -> tuple[int, int, bool]:
        return number, torch.get_num_threads(), torch.is_grad_enabled()

    found = mapped(of, range(20))
    assert [number for number, _, _ in found] == list(range(20))
    assert {cores for _, cores, _ in found} == {1}
    assert torch.get_num_threads() == threads
    with torch.inference_mode():
        assert all(mapped(lambda _: torch.is_inference_mode_enabled(), range(4)))


def test_threads_compute_in_the_precision_of_the_caller(threads: int) -> None:
    one = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert {product.dtype for product in mapped(lambda _: one @ one, range(4))} == {torch.bfloat16}
    assert {product.dtype for product in mapped(lambda _: one @ one, range(4))} == {torch.float32}


def test_a_failure_is_raised(threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        mapped(lambda number: 1 // number, [1, 0])


def test_scores_do_not_depend_on_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_BD, table_VD = (torch.randn(n, 16, generator=generator) for n in (700, 3000))
    targets_B = torch.randint(3000, (700,), generator=generator)
    seen_rows_S, seen_items_S = (torch.randint(700, (5000,), generator=generator) for _ in range(2))
    before, found = torch.get_num_threads(), []
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        pairs = torch.stack([seen_rows_S, seen_items_S]).unique(dim=1)
        found.append(score(hidden_BD, table_VD, targets_B, *pairs, 10))
    torch.set_num_threads(before)
    for one, many in zip(*found, strict=True):
        assert torch.equal(one, many)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(tmp_path: Path) -> None:
    script = """
        import os, torch
        from lrec.common.cpu_threads import mapped
        torch.set_num_threads(2)
        assert mapped(abs, [-1, -2]) == [1, 2]
        child = os.fork()
        if child == 0:
            os._exit(0 if mapped(abs, [-3]) == [3] else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-c", dedent(script)], check=True, timeout=60)
