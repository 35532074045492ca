import json

import pytest

from iisan.errors import ConfigError, RunError
from iisan.experiments.records import Record, grid, markdown, read_records, remark, spread, table


def record(row, seed=0, hr=None, ndcg=None, **fields):
    test = {key: value for key, value in (("hr@10", hr), ("ndcg@10", ndcg)) if value is not None}
    values = {
        "experiment": "table-3",
        "scale": "demo",
        "row": row,
        "seed": seed,
        "status": "finished",
        "test": test,
    }
    return Record(**(values | fields))


def failed(row, seed=0, error="out of memory"):
    return record(row, seed, status="failed", error=error)


def write(path, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"kind": "iisan-record", "schema": 2, "experiment": "table-3", "row": "LoRA", "status": "finished"}
    path.write_text(json.dumps(whole | fields))
    return path


def test_means_and_deviations_by_hand():
    # Deviations from the mean 0.10 are -0.01, 0.01 and 0: variance (1e-4 + 1e-4) / 2, deviation 0.01.
    runs = [record("A", 0, 0.09, 0.05), record("A", 1, 0.11, 0.07), record("A", 2, 0.10, 0.06)]
    (row,) = table(runs, "table-3")
    assert row.hr.mean == pytest.approx(0.10)
    assert row.hr.deviation == pytest.approx(0.01)
    assert row.hr.count == 3
    assert row.ndcg.mean == pytest.approx(0.06)
    assert row.cold_hr is None


def test_one_value_has_no_deviation():
    assert spread([0.25]).deviation is None
    assert spread([]) is None


def test_costs_are_means_over_the_runs_that_measured_them():
    cost = {"seconds_per_epoch": 2.0, "trainable_parameters": 4000, "peak_memory_bytes": 5e8}
    runs = [
        record("A", 0, 0.1, efficiency=cost),
        record("A", 1, 0.1, efficiency=cost | {"seconds_per_epoch": 4.0}),
        record("A", 2, 0.1),
    ]
    (row,) = table(runs)
    assert (row.seconds_per_epoch, row.trainable_parameters, row.peak_memory_bytes) == (3.0, 4000, 5e8)


MACHINE = {"machine": {"processor": "Abacus", "cores": 2}, "threads": 2, "precision": "fp32"}


def test_costs_of_several_machines_are_left_out_with_one_line_and_quality_is_averaged():
    cost = {"seconds_per_epoch": 2.0, "trainable_parameters": 4000, "peak_memory_bytes": 5e8}
    runs = [record("A", seed, hr, 0.1, efficiency=cost, **MACHINE) for seed, hr in ((0, 0.1), (1, 0.2))]
    assert (remark(runs), table(runs)[0].seconds_per_epoch) == ("", 2.0)
    runs[1] = runs[1].model_copy(update={"precision": "bf16"})
    (row,) = table(runs)
    assert (row.seconds_per_epoch, row.peak_memory_bytes, row.trainable_parameters) == (None, None, 4000)
    assert (row.hr.mean, row.hr.count) == (pytest.approx(0.15), 2)
    assert markdown(runs, "table-3") == (
        "|  | HR@10 (%) | NDCG@10 (%) | trained parameters |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| A | 15.00 ± 7.07 (2) | 10.00 ± 0.00 (2) | 4,000 |\n"
        "\n"
        "Costs and TPME are left out, as they need one machine, device, precision and number of threads, not "
        "Abacus, 2 cores, 2 threads, fp32 (A); Abacus, 2 cores, 2 threads, bf16 (A): "
        "train all alike, such as with --set training.precision=fp32.\n"
    )


def test_where_costs_were_not_measured_the_machines_are_named():
    cost = {"seconds_per_epoch": 2.0, "peak_memory_bytes": 5e8}
    runs = [record("A", 0, 0.1, efficiency=cost, **MACHINE), record("A", 1, 0.1), failed("A", 2)]
    assert table(runs)[0].seconds_per_epoch == 2.0
    said = "run on: Abacus, 2 cores, 2 threads, fp32 (A); unknown processor, unknown precision (A)"
    assert remark(runs) == said
    assert markdown(runs, "table-3").splitlines()[4] == f"{said.capitalize()[:1]}{said[1:]}."


def test_rows_that_ended_at_their_limit_of_epochs_are_marked():
    def ran(row, seed, epochs):
        return record(row, seed, 0.1, 0.1, epochs=epochs, config={"training": {"epochs": 9}})

    runs = [ran("A", 0, 8), ran("B", 0, 8), ran("B", 1, 9)]
    assert [row[0] for row in grid(table(runs))[1]] == ["A", "B †"]
    assert remark(runs) == "† ended after 9 epochs, perhaps before it converged"
    assert (remark(runs[:2]), grid(table(runs[:2]))[1][1][0]) == ("", "B")


def test_rows_stand_by_their_positions_and_else_as_first_seen():
    runs = [record("C", 0, 0.1), record("A", 0, 0.1), record("C", 1, 0.2), record("B", 0, 0.1)]
    assert [row.name for row in table(runs)] == ["C", "A", "B"]
    placed = [record("C", 0, 0.1, position=2), record("A", 0, 0.1, position=1), record("B", 0, 0.1, position=0)]
    assert [row.name for row in table(placed)] == ["B", "A", "C"]


def test_markdown_by_hand():
    runs = [
        record("A", 0, 0.10, 0.05, efficiency={"seconds_per_epoch": 3.2, "peak_memory_bytes": 2.5e8}),
        record("A", 1, 0.12, 0.05),
        record("B | C", 0, 0.2, 0.1),
        failed("B | C", 1, "Error:\n  out | of memory"),
        failed("D", 0, None),
    ]
    assert markdown(runs, "table-3") == (
        "|  | HR@10 (%) | NDCG@10 (%) | s / epoch | peak memory (MB) | failed runs |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| A | 11.00 ± 1.41 (2) | 5.00 ± 0.00 (2) | 3.20 | 250.0 | – |\n"
        "| B \\| C | 20.00 (1) | 10.00 (1) | – | – | 1 |\n"
        "| D | – | – | – | – | 1 |\n"
        "\n"
        "Failed runs:\n"
        "\n"
        "- B \\| C, seed 1: Error: out \\| of memory\n"
        "- D, seed 0: no error was recorded\n"
    )


def test_columns_without_figures_are_left_out_but_quality_stays():
    heads, body = grid(table([failed("A")]))
    assert heads == ["", "HR@10 (%)", "NDCG@10 (%)", "failed runs"]
    assert body == [["A", "–", "–", "1"]]


def test_sizes_of_encoders_and_stores_are_shown_where_rows_differ_in_them():
    sizes = {"encoder_parameters": {"text": 4000, "image": 500}, "store_bytes": {"text": 2e6, "image": 5e5}}
    runs = [record("A", 0, 0.1, **sizes), record("B", 0, 0.1, encoder_parameters={"text": 30, "image": 500})]
    heads, body = grid(table(runs))
    assert heads == ["", "HR@10 (%)", "NDCG@10 (%)", "encoders' parameters"]
    assert [cells[-1] for cells in body] == ["4,500", "530"]
    runs[1] = runs[1].model_copy(update={"store_bytes": {"text": 1e6}})
    assert [cells[-1] for cells in grid(table(runs))[1]] == ["2.5", "1.0"]
    assert len(grid(table(runs[:1]))[0]) == 3


def test_only_the_wanted_experiment_counts():
    runs = [record("A", 0, 0.1), record("A", 0, 0.5, experiment="table-4")]
    assert table(runs, "table-3")[0].hr.mean == 0.1
    with pytest.raises(ConfigError, match="'table-9'; expected one of table-3, table-4"):
        table(runs, "table-9")
    with pytest.raises(ConfigError, match="experiments 'table-3', 'table-4' in one table"):
        table(runs)


def test_scales_are_never_averaged():
    with pytest.raises(ConfigError, match="scales 'demo', 'full'"):
        table([record("A", 0, 0.1), record("A", 1, 0.1, scale="full")])


def test_data_and_protocols_are_never_mixed():
    for field in ("data", "protocol"):
        runs = [record(row, 0, 0.1, **{field: row}) for row in "AB"] + [record("C", 0, 0.1)]
        with pytest.raises(ConfigError, match=rf"records of the {field}s? 'A', 'B' in one table"):
            table(runs)
        assert len(table(runs[1:])) == 2


def test_a_seed_counts_once():
    twice = [record("A", 0, 0.1, source="x.json"), record("A", 0, 0.1, source="y.json")]
    with pytest.raises(ConfigError, match=r"seed 0 of 'A' finished twice \('x.json' and 'y.json'\)"):
        table(twice)
    # A failed attempt that was repeated with success is shown, and is no second draw.
    (row,) = table([failed("A", 0), record("A", 0, 0.1)])
    assert (row.hr.count, len(row.failures)) == (1, 1)


def test_folders_are_searched_and_other_json_is_skipped(tmp_path):
    write(
        tmp_path / "runs" / "b" / "record.json",
        seed=1,
        test={"hr@10": 0.1, "protocol": "in words", "mrr@10": None},
    )
    write(tmp_path / "runs" / "a.json", seed=0, status="failed", error="no memory")
    (tmp_path / "runs" / "result.json").write_text('{"kind": "iisan-run"}')
    (tmp_path / "runs" / "list.json").write_text("[1]")
    found = read_records([tmp_path / "runs", tmp_path / "runs" / "a.json"])
    assert [(each.seed, each.finished) for each in found] == [(0, False), (1, True)]
    assert found[0].reason == "no memory"
    assert found[1].test == {"hr@10": 0.1}
    assert found[1].source.endswith("record.json")


def test_nothing_found_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no record in"):
        read_records([tmp_path])
    with pytest.raises(ConfigError, match="no path at all"):
        read_records([])
    with pytest.raises(ConfigError, match="does not exist"):
        read_records([tmp_path / "absent"])


def test_damage_is_an_error_of_one_sentence(tmp_path):
    path = write(tmp_path / "a.json", row=["no", "text"])
    with pytest.raises(RunError, match=r"a.json' has a damaged field 'row'") as caught:
        read_records([path])
    assert "\n" not in str(caught.value)
    path.write_text(path.read_text()[:20])
    with pytest.raises(RunError, match=r"a.json' is not readable JSON"):
        read_records([path])
    write(path, schema=3)
    with pytest.raises(RunError, match="has schema 3; expected schema 2 or older"):
        read_records([path])


def test_gates_of_the_hidden_state_in_old_records_become_those_of_the_previous_one(tmp_path):
    gates = {"text": [0.25, 1.0], "inter": [0.3]}
    converted = {"text": (0.75, 0.0), "inter": (0.3,)}
    for schema, gate_on, expected in (
        (1, "hidden", converted),
        (1, "previous", {"text": (0.25, 1.0), "inter": (0.3,)}),
        (2, "hidden", {"text": (0.25, 1.0), "inter": (0.3,)}),
    ):
        path = write(tmp_path / "a.json", schema=schema, gates=gates, config={"items": {"gate_on": gate_on}})
        assert read_records([path])[0].gates == expected


def test_a_row_of_version_0_1_has_its_name_of_today(tmp_path):
    path = write(tmp_path / "a.json", schema=1, row="frozen backbones, no towers")
    assert read_records([path])[0].row == "frozen encoders, no towers"
