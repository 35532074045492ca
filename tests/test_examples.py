"""The examples run as they stand."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_quickstart(tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLES / "quickstart.py"))["main"]
    everyone = main(tmp_path, num_items=150, num_users=60)
    assert everyone["user_id"].n_unique() == 60
    assert everyone.group_by("user_id").len()["len"].unique().to_list() == [3]
    assert (tmp_path / "recommendations.parquet").exists()
    assert "full ranking of 150 items" in capsys.readouterr().out
