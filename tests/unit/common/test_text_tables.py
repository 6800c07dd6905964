"""A report in a file and on a terminal; numbers in sentences."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from lrec.common.pages import rendered
from lrec.common.text_tables import counted, lasting, on_terminal, rows_table

ROWS = [["size", "N_body", "test loss"], ["3k", "3,072", "5.1"], ["25k (held out)", "24,576", ""]]
REPORT = f"""# A study

Some words.

{rows_table(ROWS, text=(0,))}

![Loss against size](fit/fit.png)
- a finding
"""


def test_a_terminal_gets_aligned_columns_and_a_line_for_each_picture() -> None:
    assert on_terminal(REPORT, Path("studies/one")).splitlines() == [
        "A study",
        "-------",
        "",
        "Some words.",
        "",
        "size            N_body  test loss",
        "--------------  ------  ---------",
        "3k               3,072        5.1",
        "25k (held out)  24,576",
        "",
        "studies/one/fit/fit.png: Loss against size",
        "- a finding",
    ]


def test_a_bar_in_a_cell_does_not_begin_another() -> None:
    table = rows_table([["domain", "runs"], ["Action|Comedy", "1"]], text=(0,))
    assert r"Action\|Comedy" in table
    assert on_terminal(table).splitlines()[-1].split() == ["Action|Comedy", "1"]


def test_a_file_gets_markdown() -> None:
    assert rows_table(ROWS, text=(0,)).splitlines() == [
        "| size | N_body | test loss |",
        "|---|---:|---:|",
        "| 3k | 3,072 | 5.1 |",
        "| 25k (held out) | 24,576 |  |",
    ]


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "run", "1 run"),
        (0, "run", "0 runs"),
        (1024, "target", "1,024 targets"),
        (1.0, "epoch", "1 epoch"),
        (0.9999, "epoch", "1 epoch"),
        (0.5, "epoch", "0.5 epochs"),
        (12.345, "epoch", "12.3 epochs"),
        (999.6, "epoch", "1,000 epochs"),
    ],
)
def test_a_noun_follows_its_number(number: float, noun: str, said: str) -> None:
    assert counted(number, noun) == said


def test_a_duration_has_a_unit_that_fits() -> None:
    assert [lasting(seconds) for seconds in (0.4, 89, 90, 3600, 5400)] == ["0 s", "89 s", "2 min", "60 min", "1.5 h"]


def test_a_template_refuses_a_name_that_it_is_not_given() -> None:
    with pytest.raises(UndefinedError, match="'known' is undefined"):
        rendered("study", "ledger.md.j2", {"judged": [], "knwon": [], "better": 0})
