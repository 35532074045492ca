"""The command line as a user meets it: one sentence and exit code 2 for bad input, never a traceback."""

import json
import re
import shutil
import subprocess
import sys
import warnings

import polars as pl
import pytest

from iisan import cli
from iisan.demo.run import CAPTIONER, ENCODERS

QUICK = ["--set", "training.epochs=1", "--set", "training.batch_size=16", "--set", "loss.negatives=5"]


@pytest.fixture(scope="module")
def run_folder(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    folders = ["--dataset", prepared.dataset, "--states", prepared.states, "--out", out]
    command = [sys.executable, "-m", "iisan.cli", "train", "default", *folders, *QUICK]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert "best epoch 1 of 1: test HR@10" in done.stdout
    assert "protocol: leave-one-out test, full ranking of 30 items, history excluded (unseen)" in done.stdout
    for subset in ("validation", "test"):
        assert re.search(rf"{subset}: \d+ of 50 users left out because .* \(warning: more than 20%;", done.stdout)
    return out


def is_one_sentence(error):
    lines = error.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in error


def test_from_tables_to_recommendations(iisan, tmp_path, model_folders):
    """The newcomer's handful of commands, on CSV files."""
    (tmp_path / "items.csv").write_text(
        "item_id,title\n" + "".join(f"i{n},{'red ' * n}pump\n" for n in range(12)), encoding="utf-8"
    )
    rows = "".join(f"u{n % 9},i{(n * 5 + n // 9 * 2) % 12},{n}\n" for n in range(63))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows, encoding="utf-8")
    dataset, states, run = tmp_path / "dataset", tmp_path / "states", tmp_path / "run"
    code, out, _ = iisan("prepare", "table", tmp_path / "items.csv", tmp_path / "log.csv", "--out", dataset)
    assert code == 0, out
    assert "12 without image" in out
    assert f"iisan cache {dataset} --text MODEL --out my-states" in out
    code, out, _ = iisan("describe", dataset, "--json")
    assert (code, json.loads(out)["interactions"]) == (0, 63)
    code, out, _ = iisan("cache", dataset, "--text", model_folders["bert"], "--out", states, "--verify", "--json")
    assert (code, json.loads(out)["text"]["rows"]) == (0, 12)
    code, out, _ = iisan("train", "default", "--dataset", dataset, "--states", states, "--out", run, *QUICK)
    assert code == 0, out
    code, out, _ = iisan("evaluate", run, "--json")
    found = json.loads(out)
    baselines = ["most popular", "recently popular", "Markov", "item-kNN", "last item, frozen states"]
    assert list(found) == [*baselines, "learned part alone", "similarity", "default"]
    assert all("full ranking of 12 items" in row["protocol"] for row in found.values())
    code, out, _ = iisan("recommend", run, "--history", "i1,i2", "--k", "3", "--json")
    assert [row["rank"] for row in json.loads(out)] == [1, 2, 3]
    code, out, _ = iisan("recommend", run, "--all-users", "--out", tmp_path / "all.parquet")
    assert pl.read_parquet(tmp_path / "all.parquet")["user_id"].n_unique() == 9


def test_rules_for_events_and_weights(iisan, tmp_path):
    (tmp_path / "items.csv").write_text("item_id\na\nb\n")
    rows = "u,a,view,1\nu,b,cart,1\nu,a,cart,2\nu,b,cart,3\n"
    (tmp_path / "log.csv").write_text("user_id,item_id,event,weight\n" + rows)
    command = ["prepare", "table", tmp_path / "items.csv", tmp_path / "log.csv", "--out", tmp_path / "data"]
    for options, sentence in (([], "--events cart,view"), (["--events", "cart"], "--min-weight 2")):
        code, _, error = iisan(*command, *options)
        assert (code, is_one_sentence(error), (tmp_path / "data").exists()) == (2, True, False)
        assert sentence in error
    code, out, _ = iisan(*command, "--events", "cart", "--min-weight", "2", "--min-length", "2")
    assert code == 0
    assert "the events cart count; interactions left out: 1\n" in out
    assert "weights of 2 or more count; interactions left out: 1\n" in out
    code, out, _ = iisan(*command, "--events", "all", "--min-weight", "all")
    assert code == 0
    assert "all events count\nall weights count\n" in out


def test_captions_become_a_modality(iisan, prepared, tmp_path):
    captioned, states, run = tmp_path / "captioned", tmp_path / "states", tmp_path / "run"
    captioner = ENCODERS / CAPTIONER
    code, out, error = iisan("caption", prepared.dataset, "--model", captioner, "--out", captioned)
    assert code == 0, error
    assert "image: 28 distinct contents, 0 with a caption already" in out
    assert "28 captions" in out
    assert f"iisan cache {captioned} --model caption=TEXTMODEL" in out
    models = ["--image", prepared.image, "--model", f"caption={prepared.text}"]
    code, out, error = iisan("cache", captioned, *models, "--out", states, "--json")
    assert code == 0, error
    distinct = pl.read_parquet(captioned / "items.parquet")["caption"].drop_nulls().n_unique()
    assert {name: facts["rows"] for name, facts in json.loads(out).items()} == {"image": 28, "caption": distinct}
    code, _, error = iisan("train", "default", "--dataset", captioned, "--states", states, "--out", run, *QUICK)
    assert code == 0, error
    code, out, _ = iisan("caption", prepared.dataset, "--model", captioner, "--out", captioned, "--json")
    assert (code, json.loads(out)["kinds"]["caption"]) == (0, "text")


def test_evaluate_prints_a_table_and_writes_ranks(iisan, run_folder, tmp_path):
    code, out, _ = iisan("evaluate", run_folder, "--policy", "all", "--out", tmp_path / "ranks.parquet")
    assert code == 0
    assert "nothing excluded (all)" in " ".join(out.split())
    assert {"above", "ties"} <= set(pl.read_parquet(tmp_path / "ranks.parquet").columns)
    code, out, _ = iisan("evaluate", run_folder, "--split", "temporal", "--subset", "validation", "--no-baselines")
    assert code == 0
    assert "temporal validation of a run trained under leave-one-out" in " ".join(out.split())
    assert "Markov" not in out
    code, out, _ = iisan("evaluate", run_folder, "--no-baselines")
    assert "the policy all ranks every target" in " ".join(out.split())


def test_evaluate_by_group_and_by_other_metrics(iisan, run_folder, tmp_path):
    users = tmp_path / "users.csv"
    users.write_text("user_id,country\n" + "".join(f"u{n},{'DE' if n % 2 else 'FR'}\n" for n in range(48)))
    asked = ["--metric", "map@5", "--metric", "precision@3", "--users", users, "--sampled", "10"]
    groups = [part for name in ("cold", "popularity", "history", "country") for part in ("--by", name)]
    command = ["evaluate", run_folder, "--policy", "all", *asked]
    code, out, error = iisan(*command, *groups, "--json")
    assert code == 0, error
    found = json.loads(out)
    for row in found.values():
        assert row["map@5"] == pytest.approx(row["mrr@5"])
        assert {"sampled_hr@10", "gini@10", "novelty@10", "popularity_lift@10", "diversity@10"} <= row.keys()
        assert list(row["by"]) == ["cold", "popularity", "history", "country"]
        for each in row["by"].values():
            assert sum(group["queries"] for group in each) == 50
            mean = sum(group["queries"] * group["map@5"] for group in each) / 50
            assert mean == pytest.approx(row["map@5"])
    own = found["default"]
    assert [group["group"] for group in own["by"]["country"]] == ["DE", "FR", "unknown"]
    assert list(own["intervals"]) == ["map@5", "precision@3"]
    low, high = own["by"]["country"][0]["intervals"]["map@5"]
    assert low <= own["by"]["country"][0]["map@5"] <= high
    code, out, _ = iisan(*command, *groups, "--no-baselines")
    said = " ".join(out.split())
    assert code == 0
    for part in (
        "MAP@5",
        "PRECISION@3",
        "Lists of 10",
        "10 drawn items",
        "default by country, in % (95% interval)",
    ):
        assert part in said, said


def test_evaluate_refuses_what_it_cannot_group_or_measure(iisan, run_folder, tmp_path):
    users = tmp_path / "users.csv"
    users.write_text("user_id,country\nu1,DE\nu1,FR\n")
    for options, expected in (
        (["--users", users], "--users without --by"),
        (["--by", "contry", "--users", users], "no column 'contry' to group by"),
        (["--by", "country", "--users", users], "rows of users with different values of 'country'"),
        (["--by", "country", "--users", tmp_path / "no.csv"], "no.csv"),
        (["--metric", "hit@10"], "the metric 'hit@10'"),
        (["--sampled", "30", "--policy", "all"], "30 sampled items; expected 1 to 29"),
        (["--shares", "0.7,0.1,0.2"], "--shares with the split leave-one-out"),
    ):
        code, out, error = iisan("evaluate", run_folder, "--no-baselines", *options)
        assert (code, out, is_one_sentence(error)) == (2, "", True), error
        assert expected in error


def test_recommend_for_people(iisan, run_folder):
    code, out, _ = iisan("recommend", run_folder, "--user", "u3")
    assert code == 0
    assert "next for user u3" in out
    code, out, _ = iisan("similar", run_folder, "--item", "i3", "--item", "i7", "-k", "2")
    assert code == 0
    assert [name in out for name in ("similar to i3 by model", "similar to i7 by model")] == [True, True]


def test_filters_and_a_note(iisan, run_folder, tmp_path):
    rules = [
        "--where",
        "item_id=i3",
        "--where",
        "item_id = i4",
        "--max-per",
        "text=2",
        "--near-duplicates",
        "0.99",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, out, error = iisan("recommend", run_folder, "--history", "i1,i77", *rules, "--json")
    assert (code, error) == (0, "warning: unknown items are left out of history: 'i77'\n")
    assert {row["item_id"] for row in json.loads(out)} == {"i3", "i4"}
    assert {*json.loads(out)[0]} == {"item_id", "score", "rank", "text"}
    code, _, error = iisan("recommend", run_folder, "--all-users", *rules, "--out", tmp_path / "lists.csv")
    assert code == 0, error
    lists = pl.read_csv(tmp_path / "lists.csv")
    assert lists.columns == ["user_id", "item_id", "score", "rank"]
    assert set(lists["item_id"]) == {"i3", "i4"}


def test_similar_items(iisan, run_folder):
    code, out, _ = iisan("similar", run_folder, "--item", "i1", "--by", "text", "--k", "3", "--json")
    found = json.loads(out)
    assert (code, [row["rank"] for row in found]) == (0, [1, 2, 3])
    assert {*found[0]} == {"item_id", "similar_id", "score", "rank"}
    for arguments, sentence in (
        (["--item", "i99"], "unknown item 'i99'"),
        (["--item", "i3", "--by", "text"], "item 'i3' has no vector by 'text'"),
        (["--item", "i1", "--by", "sound"], "no item vectors by 'sound'"),
    ):
        code, out, error = iisan("similar", run_folder, *arguments)
        assert (code, out) == (2, "")
        assert sentence in error
        assert is_one_sentence(error)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--history", "i76,i77"], "i77"),
        (["--history", " , "], "history is empty"),
        (["--user", "u3", "--where", "colour=red"], "the items have no column 'colour'"),
        (["--user", "u3", "--where", "text=nothing"], "no item has text = 'nothing'"),
        (["--user", "u3", "--max-per", "text=x"], "--max-per 'text=x'"),
        (["--user", "u3", "--max-per", "text=0"], "at most 0 items of a value"),
        (["--user", "u3", "--near-duplicates", "1"], "above a cosine of 1.0"),
        (["--user", "nobody"], "nobody"),
        ([], "exactly one of --user, --history and --all-users"),
        (["--all-users"], "add --out FILE.parquet"),
    ],
)
def test_questions_that_cannot_be_answered(iisan, run_folder, arguments, sentence):
    code, out, error = iisan("recommend", run_folder, *arguments)
    assert (code, out) == (2, "")
    assert sentence in error
    assert is_one_sentence(error)


def test_bad_input_on_every_command(iisan, prepared, run_folder, tmp_path):
    (tmp_path / "empty.csv").touch()
    commands = {
        ("prepare", "table", tmp_path / "empty.csv", tmp_path / "empty.csv", "--out", tmp_path / "o"): "is empty",
        ("prepare", "table", tmp_path / "no", tmp_path / "no", "--out", tmp_path / "o"): "no file",
        ("prepare", "reference", tmp_path, "--out", tmp_path / "o"): "exactly one file items",
        ("describe", tmp_path / "nothing"): "does not exist",
        ("cache", prepared.dataset, "--out", tmp_path / "s"): "no encoder",
        ("cache", prepared.dataset, "--text", tmp_path / "no", "--out", tmp_path / "s"): str(tmp_path / "no"),
        ("cache", tmp_path / "nothing", "--text", "x", "--out", tmp_path / "s"): "does not exist",
        (
            "caption",
            prepared.dataset,
            "--model",
            "x",
            "--column",
            "photo",
            "--out",
            tmp_path / "c",
        ): "column 'photo'",
        ("caption", prepared.dataset, "--model", "x", "--column", "text", "--out", tmp_path / "c"): "of kind text",
        ("caption", prepared.dataset, "--model", "x", "--name", "image", "--out", tmp_path / "c"): "already",
        ("caption", prepared.dataset, "--model", "x", "--out", prepared.dataset): "is the dataset itself",
        ("caption", prepared.dataset, "--model", prepared.text, "--out", tmp_path / "c"): "no text about pictures",
        ("train", "defautl", "--out", tmp_path / "r"): "neither a recipe nor a file",
        ("train", "default", "--set", "traning.batch=3", "--out", tmp_path / "r"): "unknown configuration key",
        ("train", "default", "--set", "training.batch_size=x", "--out", tmp_path / "r"): "'training.batch_size'",
        ("train", "ids", "--dataset", tmp_path / "no", "--out", tmp_path / "r"): "does not exist",
        ("train", "--out", tmp_path / "r"): "neither or both of CONFIG and --from",
        ("train", "ids", "--from", run_folder, "--out", tmp_path / "r"): "neither or both of CONFIG and --from",
        ("train", "--from", tmp_path / "no", "--out", tmp_path / "r"): "does not exist",
        ("train", "--from", run_folder, "--set", "items.gated=false", "--out", tmp_path / "r"): "another model",
        ("evaluate", tmp_path / "nothing"): "does not exist",
        ("evaluate", run_folder, "--dataset", tmp_path / "moved"): "does not exist",
        ("recommend", tmp_path / "nothing", "--user", "u1"): "does not exist",
    }
    for command, sentence in commands.items():
        code, _, error = iisan(*command)
        assert code == 2, command
        assert sentence in error, (command, error)
        assert is_one_sentence(error), (command, error)


def test_wrong_usage_is_explained_by_the_parser(iisan):
    code, _, error = iisan("prepare", "excel", "x", "--out", "y")
    assert code == 2
    assert "Traceback" not in error


def test_a_full_disk_is_one_sentence(iisan, run_folder, tmp_path, monkeypatch):
    """Writing fails half-way: exit code 2, and no half-written file is left."""
    import errno

    def full(self, file, *args, **kwargs):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    out = tmp_path / "lists.parquet"
    for which, left in (
        (["--user", "u3"], set()),
        (["--all-users"], {".lists.parquet.shards", "origin.json", ".lock"}),
    ):
        code, _, error = iisan("recommend", run_folder, *which, "--out", out)
        assert code == 2
        assert "No space left on device" in error
        assert is_one_sentence(error)
        assert {path.name for path in tmp_path.rglob("*")} == left


def test_help_of_every_command(iisan):
    _, out, _ = iisan("--help")
    commands = ("demo", "prepare", "describe", "caption", "cache", "train", "evaluate", "recommend", "explain")
    for command in commands:
        assert command in out
        code, text, _ = iisan(command, "--help")
        assert code == 0
        assert f"{command} [OPTIONS]" in text


def test_a_run_is_continued(iisan, run_folder, tmp_path):
    settings = ("--set", "optimizer.learning_rate=0.01")
    code, out, _ = iisan("train", "--from", run_folder, "--out", tmp_path / "later", *settings)
    assert code == 0
    assert f"starting from '{run_folder}', which knows 30 of 30 items" in out
    assert "of 10 recommended items are the same as before" in out
    result = json.loads((tmp_path / "later" / "result.json").read_text())
    assert len(result["continued_from"]) == 64


def test_a_run_is_compared_with_itself_under_another_seed(iisan, run_folder, prepared, tmp_path):
    folders = ["--dataset", prepared.dataset, "--states", prepared.states]
    other = tmp_path / "ids"
    code, out, _ = iisan("train", "ids", *folders, "--out", other, *QUICK)
    assert code == 0, out
    code, out, _ = iisan("compare", run_folder, other)
    assert code == 0
    ranked = pl.read_parquet(other / "per_user.parquet")["ties"].count()
    assert 0 < ranked < 50
    assert f"default against the others, {ranked} users" in " ".join(out.split())
    code, out, _ = iisan("compare", run_folder, other, "--json")
    assert set(json.loads(out)["methods"]) == {"default", "ids"}


def test_tpme_of_ones_own_measurements(iisan, tmp_path):
    path = tmp_path / "costs.csv"
    path.write_text("name,seconds,parameters,memory\nslow,10,100,8\nfast,5,300,4\n")
    code, out, _ = iisan("compare", path, "--json")
    # The slow one is the worst in time and memory, the fast one in parameters.
    found = json.loads(out)["methods"]
    assert (code, found["slow"]["tpme"], found["fast"]["tpme"]) == (0, pytest.approx(0.9), pytest.approx(0.1))
    code, out, _ = iisan("compare", path)
    assert "TPME of 2 methods" in out
    code, _, error = iisan("compare", path, "--weights", "cloud")
    assert code == 2
    assert is_one_sentence(error)


def test_costs_are_estimated_before_paying_for_them(iisan, prepared):
    models = ["--text", prepared.text, "--image", prepared.image]
    code, out, _ = iisan("estimate", prepared.dataset, *models, "--recipe", "fft", "--recipe", "frozen", "--json")
    found = json.loads(out)
    assert (code, list(found)) == (0, ["fft", "frozen"])
    assert found["fft"]["trainable_parameters"] > found["frozen"]["trainable_parameters"]
    code, out, _ = iisan("estimate", prepared.dataset, *models)
    assert code == 0
    assert "lora" in out


def test_records_become_a_page(iisan, tmp_path):
    record = {"kind": "iisan-record", "schema": 1, "experiment": "table-6", "row": "PHM", "status": "failed"}
    (tmp_path / "record.json").write_text(json.dumps(record | {"error": "out of luck"}))
    code, _, _ = iisan("report", tmp_path / "record.json", "--out", tmp_path / "report.html")
    assert code == 0
    assert "out of luck" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["experiment", "table-2"], "no experiment 'table-2'"),
        (["experiment", "table-3", "--seeds", "one"], "the seeds 'one'"),
        (["experiment", "table-3", "--scale", "full"], "pass both"),
        (["report", "nowhere"], "'nowhere' does not exist"),
        (["compare", "nowhere"], "nowhere"),
    ],
)
def test_comparisons_that_cannot_be_made(iisan, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, error = iisan(*arguments)
    assert (code, out) == (2, "")
    assert sentence in error
    assert is_one_sentence(error)


def test_an_experiment_with_failed_runs_does_not_end_well(iisan, prepared, tmp_path, monkeypatch):
    def failing(*_):
        raise MemoryError("too large")

    monkeypatch.setattr("iisan.experiments.run.train", failing)
    full = ["--scale", "full", "--dataset", prepared.dataset, "--states", tmp_path / "states", "--out", tmp_path]
    code, out, error = iisan("experiment", "balance", *full, "--text", prepared.text, "--image", prepared.image)
    assert code == 1
    assert "MemoryError: too large" in out
    assert error.endswith("4 of 4 runs failed; the same command runs them again\n")


def test_a_dataset_that_moved_is_found_again(iisan, prepared, run_folder, tmp_path):
    """Also where its name is no plain text."""
    moved, run = tmp_path / "\N{GRINNING FACE} data", shutil.copytree(run_folder, tmp_path / "run")
    shutil.copytree(prepared.dataset, moved)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(prepared.dataset), str(tmp_path / "gone")))
    code, _, error = iisan("recommend", run, "--user", "u3")
    assert code == 2
    assert is_one_sentence(error)
    code, out, error = iisan("recommend", run, "--user", "u3", "--dataset", moved)
    assert (code, "next for user u3" in out) == (0, True), error
    code, out, error = iisan("evaluate", run, "--dataset", moved, "--no-baselines")
    assert code == 0, error


def test_who_stops_a_command_is_told_that_nothing_is_lost(iisan, run_folder, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.runs, "print_recommendations", stopped)
    code, _, error = iisan("recommend", run_folder, "--user", "u3")
    assert (code, error) == (130, "stopped; the same command resumes from here\n")


def test_what_is_no_text_is_one_sentence(iisan, run_folder):
    code, _, error = iisan("recommend", run_folder, "--user", "\udcff")
    assert code == 2
    assert is_one_sentence(error)
