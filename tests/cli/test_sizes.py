"""`lrec sizes` on the terminal and as JSON, with a catalogue from the command line and from a store."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lrec.data.batching.plan import BatchPlan
from lrec.data.splits.reduction import Reduction, training_part
from lrec.data.splits.rules import LastItems
from lrec.data.store.store import Store
from lrec.model import cost
from lrec.model.config import TransformerConfig
from lrec.model.cost import Traffic
from lrec.model.network_sizes import SIZES

REPOSITORY = Path(__file__).parents[2]


def test_every_size_is_listed_with_its_counts(lrec: Callable[..., str]) -> None:
    printed = lrec("sizes", "--items", 1234)
    for name, shape in SIZES.items():
        config = TransformerConfig(1234, 50, *shape)
        row = next(line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert f"{cost.n_body(config):,}" in row
        assert f"{cost.n_total(config):,}" in row
    assert "829,440,000" in printed


def test_the_page_shows_what_the_command_prints(lrec: Callable[..., str]) -> None:
    page = (REPOSITORY / "docs" / "sizes.md").read_text()
    for command in re.findall(r"^lrec (sizes(?: --sizes .*)?)$", page.replace("\\\n", ""), re.MULTILINE):
        assert lrec(*shlex.split(command)).strip() in page, command


def test_json_holds_the_table_and_what_it_assumes(
    tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    assert f"--out {tmp_path} is a folder" in refused("sizes", f"--out={tmp_path}")
    out = tmp_path / "sizes.json"
    options = ["--ranks=4", "--precision=bf16-mixed", "--checkpointing=true", "--architecture.mlp=swiglu"]
    lrec("sizes", "--sizes=[1.6m,829m]", *options, f"--out={out}")
    written = json.loads(out.read_text())
    assert written["assumptions"]["shards"] == 4
    assert written["assumptions"]["architecture"]["mlp"] == "swiglu"
    assert [row["size"] for row in written["sizes"]] == ["1.6m", "829m"]
    row = written["sizes"][1]
    assert row["parameters"]["body"] == 829_440_000
    parts = {name: value for name, value in row["memory_bytes"].items() if name != "total"}
    later = max(parts.pop("gradients"), parts["activations"] + parts["transient"], parts["at_the_end"])
    lasting = parts["parameters"] + parts["optimizer"] + parts["copies"]
    assert lasting + later == row["memory_bytes"]["total"]
    assert parts["optimizer"] == 2 * parts["parameters"]
    assert row["flops_per_interaction"]["recomputed"] > 0


def test_a_store_gives_catalogue_and_window_lengths(log_csv: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    columns = {"user": "who", "item": "what", "time": "when"}
    options = [f"--data.{name}_column={column}" for name, column in columns.items()]
    lrec("data", "prepare", "--config=data/csv.yaml", f"--data.path={log_csv}", f"--data.data_dir={tmp_path}", *options)
    (store,) = (path.parent for path in tmp_path.rglob("meta.json"))
    lrec("sizes", "--sizes=[3k]", f"--data={store}", "--max_len=10", f"--out={tmp_path / 'sizes.json'}")
    assumed = json.loads((tmp_path / "sizes.json").read_text())["assumptions"]
    split = LastItems()(Store.open(store))
    assert assumed["n_items"] == len(split.catalogue_V)
    lengths = torch.as_tensor(BatchPlan(training_part(split, Reduction()), 10, 100).epoch(0, 0).lengths_W).double()
    by_position = torch.cat([torch.arange(1, int(length) + 1) for length in lengths]).double()
    assert assumed["pairs"] == pytest.approx(by_position.mean().item())
    assert assumed["pairs"] < 5.5


# The example of docs/cluster.md: 829m over ten million items on 64 GPUs.
LARGEST = ["--sizes=[829m]", "--items=10000000", "--ranks=64", "--precision=bf16-mixed", "--device=cuda"]


@pytest.mark.parametrize(("targets", "checkpointing", "most_gib"), [(65_536, "true", 6), (524_288, "false", 40)])
def test_ten_million_items_fit_64_gpus(
    targets: int, checkpointing: str, most_gib: int, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    options = [f"--targets_per_step={targets}", f"--checkpointing={checkpointing}", f"--out={tmp_path / 'sizes.json'}"]
    printed = lrec("sizes", *LARGEST, *options)
    row = json.loads((tmp_path / "sizes.json").read_text())["sizes"][0]
    assert row["memory_bytes"]["total"] < most_gib * 2**30
    # 12 billion entries of the table and 830 million others, a 64th of each, in float32.
    assert row["memory_bytes"]["parameters"] == pytest.approx(4 * (12e9 + 830.25e6) / 64, rel=1e-3)
    step = row["step_of_a_rank"]
    # Hidden states of 63 ranks in bfloat16, and their gradients in float32.
    assert step["hidden"] == 63 * targets // 64 * 1200 * (2 + 4)
    # Muon gathers the steps of the blocks' matrices, in float32, once.
    assert step["muon"] == pytest.approx(4 * row["parameters"]["body"] * 63 / 64)
    assert step["received"] == sum(step[part] for part in Traffic._fields)
    assert f"{step['flops'] / 1e12:,.2f}" in printed


def test_copies_of_the_network_exchange_gradients_alone(tmp_path: Path, lrec: Callable[..., str]) -> None:
    lrec("sizes", "--sizes=[98k]", "--ranks=2", "--shards=1", f"--out={tmp_path / 'sizes.json'}")
    row = json.loads((tmp_path / "sizes.json").read_text())["sizes"][0]
    # A rank receives one half of them to add up, and the other half added up.
    assert row["step_of_a_rank"]["received"] == row["step_of_a_rank"]["gradients"] == 4 * row["parameters"]["total"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes=[99k]"], "unknown size '99k': choose one of 0.8k"),
        (["--items=0"], "--items must be at least 1, got 0"),
        (["--ranks=4", "--shards=3"], "--shards must divide --ranks 4, got 3"),
        (["--data=nowhere"], "nowhere"),
        (["--precision=fp8"], "precision"),
    ],
)
def test_what_cannot_be_is_refused(options: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused("sizes", *options)
