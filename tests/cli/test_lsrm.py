"""The two data sets of the LSRM paper: its filters, its split, and its way of counting, on sets made up here."""

from pathlib import Path

import numpy as np
import pytest

from lrec.data.base import SequenceDataModule
from lrec.data.datasets import datamodule_of
from lrec.lightning_cli import compose
from lrec.parser import with_shipped_configs


def preset(name: str, path: Path, data_dir: Path) -> SequenceDataModule:
    options = [f"--config=data/{name}.yaml", f"--data.path={path}", f"--data.data_dir={data_dir}", "--model.size=98k"]
    data = datamodule_of(compose(with_shipped_configs(options)))
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("lengths", [[20, 21, 40, 300, 16], [20, 16, 15, 14, 3, 2, 1, 60]])
def test_movielens(lengths: list[int], tmp_path: Path, lrec) -> None:
    lines = ["userId,movieId,rating,timestamp"]
    for user, length in enumerate(lengths):
        lines += [f"{user},{movie},0.5,{1_000_000_000 + movie // 3}" for movie in range(length)]
    lines.append(lines[1])  # an exact duplicate
    path = tmp_path / "ratings.csv"
    path.write_text("\n".join(lines) + "\n")
    data = preset("lsrm-ml20m", path, tmp_path)

    rows, split = data.store.statistics["interactions"], data.cuts
    assert rows == sum(lengths), "every rating is an interaction, and the duplicate is none"
    is_long = np.array([length > 15 for length in lengths])
    counts = split.counts
    assert counts["trajectory"] == 10 * is_long.sum()
    assert counts["test"] == counts["validation"] == is_long.sum() + sum(3 <= length <= 15 for length in lengths)
    # The paper counts what is left without trajectory and test of the users with more than 15 interactions: on
    # MovieLens-20M, where all have, 20,000,263 - 11 * 138,493 = 18,476,840.
    short_tests = counts["test"] - is_long.sum()
    assert counts["training"] + counts["validation"] + short_tests == rows - 11 * is_long.sum()
    assert sum(max(n - 1, 0) for n in split.train_U) == data.U
    for user, length in enumerate(lengths):
        cut = length - 10 if length > 15 else length
        expected = (cut - 2, cut - 1) if cut >= 3 else (-1, -1)
        assert (split.val_U[user], split.test_U[user]) == expected
    printed = lrec("data", "prepare", *with_shipped_configs(["--config=data/lsrm-ml20m.yaml"]), f"--data.path={path}",
                   f"--data.data_dir={tmp_path}")  # fmt: skip
    assert f"trajectory      {counts['trajectory']:,}\n" in printed


def test_amazon(tmp_path: Path) -> None:
    """Two domains that are 30-cores only together, beside users and items that fall below."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for domain, items in (("Books", range(16)), ("Toys", range(16, 33))):
        rows = [(f"A{u}", f"B{i:09}", 1_400_000_000 + (i * 7 + u) % 33 * 1000) for u in range(31) for i in items]
        rows += [(f"Arare{u}", f"B{items[0]:09}", 1_400_000_000) for u in range(5)]
        rows += [(f"A{u}", f"B9{domain[0]:0>8}", 1_500_000_000) for u in range(29)]
        (raw / f"{domain}.csv").write_text("".join(f"{item},{user},5.0,{time}\n" for user, item, time in rows))
    data = preset("lsrm-amazon", raw, tmp_path)
    statistics = data.store.statistics
    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (31, 33, 31 * 33)
    assert statistics["domains"] == 2
    counts = data.cuts.counts
    assert (data.cuts.test_U == 33 - 11).all()
    assert counts["training"] + counts["validation"] == statistics["interactions"] - 11 * statistics["users"]
    first_user = data.store.items_N[: data.store.offsets_U1[1]]
    domains = data.store.item_table["domain"].gather(first_user).to_list()
    assert domains != sorted(domains), "one sequence in time, not one domain after the other"
