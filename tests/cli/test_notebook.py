"""The notebook's cells run in their order, in an empty folder."""

import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_steps.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    recommended = names["recommender"].recommend([["SKU-001", "SKU-002"]], k=10)  # type: ignore[attr-defined]
    assert "SKU-003" in recommended["items"][0].to_list()
    assert len(names["predicted"]) == 2  # type: ignore[arg-type]
    assert json.loads(Path("studies/orders/prediction.json").read_text())["trained_before"] == []
