"""Reading points: what is read, what is refused, and with which message."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrec.errors import UserError
from lrec.laws.table import source_hash
from lrec.study.points import read_points


def own_row(n_body: float, loss: float | None, **changes: object) -> dict[str, object]:
    row = {"schema": 1, "best": True, "status": "finished", "N_body": n_body, "U": 1000, "D": 5000, "test_loss": loss}
    return row | changes


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_gives_the_best_evaluation_of_every_run_that_did_not_diverge(tmp_path: Path) -> None:
    write_lines(tmp_path / "b/points.jsonl", [own_row(10, None, best=False), own_row(10, 5.0)])
    write_lines(tmp_path / "a/deep/points.jsonl", [own_row(20, 4.0)])
    write_lines(tmp_path / "c/points.jsonl", [own_row(30, None, status="diverged")])
    points = read_points([tmp_path])
    assert points.select("x", "y").rows() == [(10.0, 5.0), (20.0, 4.0)]
    assert points["row"].to_list() == [2, 1]


def test_a_file_named_twice_counts_once(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "points.jsonl", [own_row(10, 5.0)])
    assert len(read_points([tmp_path, file])) == 1


def test_a_text_in_json_lines_may_hold_the_line_breaks_of_unicode(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    file.write_text(json.dumps({"N_body": 10, "test_loss": 5.0, "run": "a\u2028b"}, ensure_ascii=False) + "\r\n")
    assert read_points([file])["run"].to_list() == ["a\u2028b"]


def test_own_points_in_a_table_of_texts_are_refused(tmp_path: Path) -> None:
    pl.DataFrame([own_row(10, 5.0)]).write_csv(tmp_path / "points.csv")
    with pytest.raises(UserError, match=r"points\.csv: .*own points .* leave out the columns best, schema, status"):
        read_points([tmp_path / "points.csv"])


def test_a_law_of_size_sees_only_the_largest_amount_of_data(tmp_path: Path) -> None:
    rows = [own_row(n, 5.0, U=u, D=u) for n in (10, 20) for u in (500, 1000)]
    file = write_lines(tmp_path / "points.jsonl", rows)
    assert read_points([file], x="N_body")["x"].to_list() == [10.0, 20.0]
    assert read_points([file], x="U")["x"].to_list() == [500.0, 1000.0]


def test_runs_of_different_data_of_the_same_amount_are_refused(tmp_path: Path) -> None:
    rows = [own_row(n, 5.0, data_hash=f"{n}" * 8, seed=1) for n in (10, 20)]
    file = write_lines(tmp_path / "points.jsonl", rows)
    for columns in ({}, {"d": "D", "u": "U"}):
        with pytest.raises(UserError, match=r"different data \(data_hash 1010101010101010 and 2020202020202020\)"):
            read_points([file], **columns)
    rows[1]["U"] = 500  # a share of the data
    assert len(read_points([write_lines(file, rows)], shares=True)) == 2


@pytest.mark.parametrize(
    ("passes", "seen"),
    [(1, [(1e4, 20), (1e5, 20)]), (30, [(1e4, 10), (1e4, 20), (1e5, 10), (1e5, 20)])],
)
def test_a_forecast_by_size_sees_every_share_of_data_if_runs_repeat_it(
    tmp_path: Path, passes: int, seen: list[tuple[float, float]]
) -> None:
    rows = [own_row(n, 5.0, seed=1, U=u, D=passes * u) for n in (1e4, 1e5) for u in (10, 20)]
    file = write_lines(tmp_path / "points.jsonl", rows)
    assert read_points([file], shares=True).select("x", "u").rows() == seen


def test_a_forecast_by_data_sees_no_shares(tmp_path: Path) -> None:
    rows = [own_row(n, 5.0, seed=1, U=u, D=u) for n in (1e4, 1e5) for u in (10, 20)]
    file = write_lines(tmp_path / "points.jsonl", rows)
    by_data = read_points([file], "U", shares=True)
    assert by_data["x"].to_list() == [10, 20]
    assert "u" not in by_data.columns


def test_a_law_of_size_refuses_variants_of_one_run(tmp_path: Path) -> None:
    for name, epochs in (("long", 16), ("short", 1)):
        rows = [own_row(n, 5.0, seed=seed, D=1000 * epochs) for n in (10, 20) for seed in (1, 2)]
        write_lines(tmp_path / name / "points.jsonl", rows)
    with pytest.raises(UserError, match=r"long/points.jsonl and .*short/points.jsonl both have N_body 10 and seed 1"):
        read_points([tmp_path])
    assert len(read_points([tmp_path / "long"])) == 4
    assert len(read_points([tmp_path], d="D", u="U")) == 8


def test_a_law_of_flops_goes_along_the_best_runs(tmp_path: Path) -> None:
    runs = [(1e6, 5.5), (2e6, 5.2), (3e6, 5.3), (4e6, 5.0), (4e6, 4.9), (5e6, 4.95), (9e6, 4.8)]
    rows = [own_row(10, loss, flops=flops) for flops, loss in runs]
    rows.append(own_row(10, 4.0, flops=2.5e6, U=500))
    points = read_points([write_lines(tmp_path / "points.jsonl", rows)], x="flops")
    assert points.select("x", "y").rows() == [(1e6, 5.5), (2e6, 5.2), (4e6, 4.9), (9e6, 4.8)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_other_tables_are_read_by_the_names_of_their_columns(tmp_path: Path, suffix: str) -> None:
    table = pl.DataFrame({"params": [1e6, 2e6], "loss": [3.5, 3.25], "best": [False, True]})
    file = tmp_path / f"table.{suffix}"
    match suffix:
        case "parquet":
            table.write_parquet(file)
        case "jsonl":
            table.write_ndjson(file)
        case _:
            table.write_csv(file, separator="\t" if suffix == "tsv" else ",")
    assert read_points([file], x="params", y="loss").select("x", "y").rows() == [(1e6, 3.5), (2e6, 3.25)]


def test_the_column_run_is_kept_for_other_tables_but_not_for_our_own_points(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("N,L,run\n1,3.5,7\n2,3.25,7\n4,3.0,\n")
    assert read_points([tmp_path / "t.csv"], "N", "L")["run"].to_list() == ["7", "7", None]
    own = write_lines(tmp_path / "points.jsonl", [own_row(10, 5.0), own_row(20, 4.0)])
    assert "run" not in read_points([own]).columns


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_tables_may_begin_with_a_mark_of_their_encoding_and_have_blank_lines(name: str, tmp_path: Path) -> None:
    text = "N, L\r\n1, 2\r\n\r\n" if name == "t.csv" else '{"N": 1, "L": 2, "run": [3]}\r\n\r\n'
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_points([tmp_path / name], "N", "L").select("x", "y", "row").rows() == [
        (1.0, 2.0, 1 + (name == "t.csv"))
    ]


@given(st.permutations([(1.0, 4.0), (1.0, 4.1), (2.0, 3.5), (8.0, 3.0)]))
def test_the_hash_ignores_the_order_of_rows_and_nothing_else(rows: list[tuple[float, float]]) -> None:
    frame = pl.DataFrame(rows, schema=["x", "y"], orient="row")
    ordered = frame.sort("x", "y")
    assert source_hash(frame) == source_hash(ordered)
    assert source_hash(frame) != source_hash(frame.with_columns(pl.col("y") + 1e-12))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "params,loss\n1,2\n", r"t\.csv: no column 'N' \(--x\); it has params, loss"),
        ("t.csv", "N,loss\n1,2\n", r"no column 'L' \(--y\); it has N, loss"),
        ("t.csv", "N,L\n1,2\n3,abc\n", r"t\.csv, row 3: L is 'abc', not a positive number"),
        ("t.csv", "N,L\n1e307,2\n3,4\n", r"t\.csv, row 2: N is '1e307', not a positive number up to 1e\+100"),
        ("t.csv", "N,L\n1,2\n3,1e-307\n", r"t\.csv, row 3: L is '1e-307', not a positive number up to"),
        ("t.csv", "N,L\n1,nan\n", r"row 2: L is 'nan'"),
        ("t.csv", "N,L\n1,\n", r"row 2: L is None"),
        ("t.csv", "N,L\n-1,2\n", r"row 2: N is '-1'"),
        ("t.csv", "N,L\ninf,2\n", r"row 2: N is 'inf'"),
        ("t.csv", "", r"t\.csv: the file holds no rows"),
        ("t.csv", "N,L\n", r"t\.csv: the file holds no rows"),
        ("t.csv", "N,L\n1,2\n\n3,4,5\n", r"t\.csv, row 4: more values than columns; correct or remove"),
        ("t.csv", "N,L,L\n1,2,3\n", r"t\.csv: two columns have the same name"),
        ("t.csv", "N,L, L\n1,2,3\n", r"t\.csv: two columns have the same name"),
        ("t.csv", 'N,L\n1,"2\n', r"t\.csv: not readable as csv"),
        ("t.jsonl", "[" * 100_000, r"t\.jsonl, row 1: not a JSON object"),
        ("t.jsonl", f'{{"N": 1{"0" * 5000}, "L": 2}}', r"t\.jsonl, row 1: not a JSON object"),
        ("t.jsonl", "", r"t\.jsonl: the file holds no rows"),
        ("t.jsonl", '{"N": 1, "L": 2}\n{"N": 1, "L"', r"t\.jsonl, row 2: not a JSON object"),
        ("t.jsonl", '{"N": 1, "L": NaN}\n', r"row 1: L is nan"),
        ("t.jsonl", f'{{"N": 1{"0" * 400}, "L": 2}}', r"row 1: N is 1000"),
        ("t.parquet", "", r"t\.parquet: not readable as parquet"),
        ("t.parquet", "no parquet", r"t\.parquet: not readable as parquet"),
        ("t.xlsx", "N", r"t\.xlsx: points are read from"),
    ],
)
def test_bad_files_are_refused_naming_file_and_row(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as refusal:
        read_points([tmp_path / name], x="N", y="L")
    assert "\n" not in str(refusal.value)


def test_a_table_that_is_not_utf_8_is_to_be_saved_as_such(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("N,L,größe\n1,2,3\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"t\.csv: not UTF-8 text: save the table as UTF-8$"):
        read_points([tmp_path / "t.csv"], x="N", y="L")


def test_missing_paths_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_points([tmp_path / "absent.csv"])
    with pytest.raises(UserError, match=r"no points\.jsonl in or under"):
        read_points([tmp_path])
    with pytest.raises(UserError, match="name at least one"):
        read_points([])


def test_runs_without_a_usable_point_are_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "points.jsonl", [own_row(10, None, status="diverged")])
    with pytest.raises(UserError, match="no usable point"):
        read_points([tmp_path])
    write_lines(tmp_path / "points.jsonl", [own_row(10, None)])
    with pytest.raises(UserError, match="row 1: test_loss is None"):
        read_points([tmp_path])


def test_runs_of_a_known_length_without_a_usable_point_are_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "points.jsonl", [own_row(10, None, best=False, horizon=1.0)])
    with pytest.raises(UserError, match="no usable point"):
        read_points([file], shares=True)


@pytest.mark.parametrize("wrong", ["5", True, [], {}])
@pytest.mark.parametrize("field", ["D", "U", "flops", "wall_s", "seed", "val_loss", "HR"])
def test_own_points_with_another_kind_of_value_are_refused(field: str, wrong: object, tmp_path: Path) -> None:
    rows = [own_row(10, 5.0), own_row(20, 4.0, metrics={"test/HR@10": wrong}, **{field: wrong})]
    file = write_lines(tmp_path / "points.jsonl", rows)
    with pytest.raises(UserError, match=r"points\.jsonl, row 2: .* is .*, not a number"):
        read_points([file])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seed": 2**63}, "seed is 9223372036854775808, beyond"),
        ({"N_body": -5}, "N_body is -5, not a positive number"),
        ({"best": "true"}, "best is 'true', not true or false"),
    ],
)
def test_values_of_own_points_that_cannot_be_are_named(wrong: dict[str, object], said: str, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "points.jsonl", [own_row(10, 5.0), own_row(20, 4.0) | wrong])
    with pytest.raises(UserError, match=rf"points\.jsonl, row 2: {said}"):
        read_points([file])


def test_own_points_whose_numbers_are_none_lack_them(tmp_path: Path) -> None:
    """JSON of other programs may have NaN and Infinity, or 0 for what is not known."""
    nan, inf = float("nan"), float("inf")
    rows = [own_row(n, 5.0, flops=0, U=inf, D=nan, metrics={"test/HR@10": nan, "test/NDCG@10": 0.5}) for n in (1, 2)]
    points = read_points([write_lines(tmp_path / "points.jsonl", rows)])
    assert {"flops", "u", "d", "HR@10"}.isdisjoint(points.columns)
    assert points["NDCG@10"].to_list() == [0.5, 0.5]


def test_a_law_of_data_sees_every_amount_of_data(tmp_path: Path) -> None:
    rows = [own_row(n, 5.0, U=u, D=2 * u) for n in (10, 20) for u in (500, 1000)]
    points = read_points([write_lines(tmp_path / "points.jsonl", rows)], d="D", u="U")
    assert points.select("x", "d", "u").sort("x", "d").rows() == [
        (n, 2.0 * u, float(u)) for n in (10.0, 20.0) for u in (500, 1000)
    ]
    pl.DataFrame({"n": [1e6], "tokens": [1e9], "loss": [3.0]}).write_csv(tmp_path / "t.csv")
    assert read_points([tmp_path / "t.csv"], "n", "loss", d="tokens").select("x", "d", "y").rows() == [(1e6, 1e9, 3.0)]
    with pytest.raises(UserError, match=r"no column 'U' \(--u\); it has n, tokens, loss"):
        read_points([tmp_path / "t.csv"], "n", "loss", d="tokens", u="U")


def test_own_points_bring_flops_metrics_and_whether_the_loss_rose_again(tmp_path: Path) -> None:
    metrics = {"metrics": {"test/NDCG@10": 0.2, "val/NDCG@10": 0.9}}
    for name, last in (("rose", 5.1), ("noise", 5.001)):
        rows = [
            own_row(10, 5.0, val_loss=5.0, flops=6e9, run=name, **metrics),
            own_row(10, None, val_loss=last, best=False, run=name),
        ]
        write_lines(tmp_path / name / "points.jsonl", rows)
    points = read_points([tmp_path])
    assert points.select("flops", "NDCG@10", "overfitted").rows() == [(6e9, 0.2, False), (6e9, 0.2, True)]
    assert "HR@10" not in points.columns


@pytest.mark.parametrize("distinct", ["study", "data_hash"])
def test_runs_with_the_same_name_in_one_file_are_of_several_studies(distinct: str, tmp_path: Path) -> None:
    rows = []
    for u, last in ((1000, 6.0), (2000, 5.0)):
        run: dict[str, object] = {"run": "3k-seed1", distinct: f"{u}", "U": u}
        rows += [own_row(10, 5.0, val_loss=5.0, **run), own_row(10, None, val_loss=last, best=False, **run)]
    points = read_points([write_lines(tmp_path / "points.jsonl", rows)], shares=True)
    assert points.select("u", "overfitted").rows() == [(1000.0, True), (2000.0, False)]


def test_a_curve_may_stop_in_data_or_if_runs_repeat_their_data(tmp_path: Path) -> None:
    once = write_lines(tmp_path / "once.jsonl", [own_row(10, 5.0, D=1000)])
    again = write_lines(tmp_path / "again.jsonl", [own_row(10, 5.0, D=5000)])
    pl.DataFrame({"N_body": [1e6], "test_loss": [3.0]}).write_csv(tmp_path / "t.csv")
    told = {
        (file.stem, x): read_points([file], x)["may_stop"].to_list()
        for file, x in ((once, "N_body"), (once, "U"), (again, "N_body"), (tmp_path / "t.csv", "N_body"))
    }
    assert told == {
        ("once", "N_body"): [False],
        ("once", "U"): [True],
        ("again", "N_body"): [True],
        ("t", "N_body"): [False],
    }
