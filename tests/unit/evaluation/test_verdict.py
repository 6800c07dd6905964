"""The line that every run ends with."""

import math

import pytest

from lrec.evaluation.evaluator import verdict

FIGURES = {
    "model": {"loss": 4.0, "NDCG@10": 0.30},
    "popularity": {"loss": 5.0, "NDCG@10": 0.10},
    "repeat-last": {"loss": math.nan, "NDCG@10": 0.01},
    "markov": {"loss": 4.5, "NDCG@10": 0.52},
}


def test_a_better_model_is_said_to_be_better() -> None:
    assert verdict(FIGURES, "val/loss", []) == "better than markov, the best baseline: loss 4.0000 against 4.5000"


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ((0.1, 0.2, 0.3), "val/NDCG@10 was the best at the last evaluation: raise --trainer.max_epochs"),
        ((0.1, 0.3, 0.2), "try another --model.optimizer.lr, --model.dropout or --model.size"),
        ((), "try another --model.optimizer.lr"),
    ],
)
def test_a_worse_one_gets_advice(values: tuple[float, ...], advice: str) -> None:
    line = verdict(FIGURES, "val/NDCG@10", values)
    assert line is not None
    assert line.startswith("no better than markov, the best baseline: NDCG@10 0.3000 against 0.5200; ")
    assert advice in line


def test_equal_is_no_better() -> None:
    line = verdict({"model": {"loss": 4.0}, "popularity": {"loss": 4.0}}, "val/loss", [5.0, 4.0])
    assert line is not None
    assert line.startswith("no better")


def test_nothing_to_compare_with() -> None:
    assert verdict({"model": {"loss": 4.0}, "repeat-last": {"loss": math.nan}}, "val/loss", []) is None
    assert verdict(FIGURES, "val/popularity@10", []) is None
