"""Commands that train, evaluate and recommend."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from iisan.cli.common import (
    DatasetOption,
    ImagesOption,
    Json,
    Out,
    PolicyOption,
    RayOption,
    RunFolder,
    Set,
    SharesOption,
    StatesOption,
    app,
    check_shares,
    cluster_at,
    conditions_of,
    given,
    limits_of,
    say_to,
    write_frame,
)
from iisan.errors import ConfigError
from iisan.files import FRAMES, check_ending
from iisan.printing import (
    print_checks,
    print_evaluations,
    print_explanation,
    print_groups,
    print_json,
    print_recommendations,
    shown_metrics,
)

UserOption = Annotated[str | None, typer.Option(help="User of the dataset.")]
HistoryOption = Annotated[str | None, typer.Option(metavar="ID,ID,…", help="Item ids, oldest first.")]


@app.command()
def train(
    out: Out,
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="YAML file, or a recipe such as default, ids or lora.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Finished run to start from, instead of CONFIG.")
    ] = None,
    dataset: DatasetOption = None,
    states: StatesOption = None,
    images: ImagesOption = None,
    settings: Set = None,
    ray: RayOption = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that train on the cluster of --ray. Defaults to all that fit."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model and evaluate its best epoch. Resumes an interrupted run."""
    from iisan.machine import first_process, keep_freed_memory
    from iisan.recipes import load_config
    from iisan.runs.run import Run
    from iisan.train.run import train as train_run

    keep_freed_memory()
    if (config is None) == (start is None):
        raise ConfigError(
            "neither or both of CONFIG and --from are given", "one of them", "name a recipe, a YAML file or a run"
        )
    if processes is not None and ray is None:
        raise ConfigError(
            "--processes without --ray", "a cluster that they run on", "add --ray local, or use torchrun"
        )
    earlier, overrides = Run.load(start) if start is not None else None, settings or []
    chosen = earlier.config.override(overrides) if earlier else load_config(str(config), overrides)
    chosen = chosen.model_copy(update=given(dataset=dataset, states=states, images=images))
    say = say_to(as_json)
    with cluster_at(ray, say) as cluster:
        if cluster is None:
            result = train_run(chosen, out, say=say, start=earlier)
        else:
            from iisan.scale.training import train_on

            result = train_on(cluster, chosen, out, processes, start)
    if not first_process():
        return
    if as_json:
        print_json(result)
        return
    trained = (
        f"best epoch {result['best_epoch']} of {result['epochs']}" if result["epochs"] else "nothing to train"
    )
    _print_test(trained, result, out)


def _print_test(which: str, result: dict[str, Any], out: Path) -> None:
    from iisan.evaluate.metrics import REPORTED

    test = result["test"]
    shown = [name for name in (f"{metric}@10" for metric in REPORTED) if name in test]
    print(f"{which}: test {'  '.join(f'{name.upper()} {100 * test[name]:.2f}%' for name in shown)}")
    print(f"protocol: {result['protocol']}")
    if future := result.get("future"):
        print(f"future: {future}")
    print(f"next: iisan evaluate {out}   |   iisan recommend {out} --user ID")


@app.command()
def join(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Finished anchored runs.")],
    out: Out,
    dataset: DatasetOption = None,
    states: StatesOption = None,
    as_json: Json = False,
) -> None:
    """Join runs, such as seeds or recipes, into one that adds up their scores, weighted on validation."""
    from iisan.runs.run import Run
    from iisan.train.members import join as join_runs

    moved = given(dataset=dataset, states=states)
    result = join_runs([Run.load(run) for run in runs], out, say=say_to(as_json), moved=moved)
    if as_json:
        print_json(result)
        return
    select = result["terms"]["metric"]
    for member in result["members"]:
        alone, without = member["validation"][select], member["validation_without"]
        rest = "" if without is None else f", without it {100 * without:.2f}%"
        print(
            f"{member['folder']}: validation {select.upper()} {100 * alone:.2f}% alone{rest}; "
            f"{member['trainable_parameters']:,} parameters, {member['train_seconds']:.0f} s of training"
        )
    _print_test("together", result, out)


@app.command()
def evaluate(
    run: RunFolder,
    subset: Annotated[
        Literal["validation", "test"] | None, typer.Option(help="Subset to evaluate on. Defaults to test.")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Queries to evaluate on instead of a subset: user_id, history, target."),
    ] = None,
    split: Annotated[
        Literal["given", "leave-one-out", "temporal", "ratio", "users"] | None,
        typer.Option(
            help="Defaults to the run's own split. With a different split, targets that the run was trained or "
            "selected on are left out."
        ),
    ] = None,
    shares: SharesOption = None,
    policy: PolicyOption = None,
    baselines: Annotated[
        bool,
        typer.Option(help="Also evaluate popularity, Markov, item-kNN, similarity, and the parts of the run."),
    ] = True,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME@K",
            help="Metric to show instead of HR, NDCG and MRR, such as map@10, precision@5 or cold_recall@20; "
            "repeatable.",
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="cold|popularity|history|COLUMN",
            help="Also show the metrics by group: cold and warm targets, deciles of their popularity, lengths of "
            "the history, or values of a COLUMN of --users or of the items; repeatable.",
        ),
    ] = None,
    users: Annotated[
        Path | None, typer.Option("--users", metavar="FILE", help="Table of users for --by: user_id and others.")
    ] = None,
    sampled: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Also rank each target among N drawn items only, to compare with such results.",
        ),
    ] = None,
    dataset: DatasetOption = None,
    states: StatesOption = None,
    images: ImagesOption = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the rank of every target (.parquet, .csv, .jsonl).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run and the baselines by ranking the whole catalogue for every user."""
    from iisan.evaluate.groups import column_of, group_by
    from iisan.evaluate.metrics import named_metrics, parse_metric
    from iisan.evaluate.significance import intervals
    from iisan.machine import keep_freed_memory
    from iisan.runs.assess import assess, read_users
    from iisan.runs.run import Run
    from iisan.states.configured import open_dataset

    keep_freed_memory()
    check_ending(out, FRAMES)
    if queries is not None and (subset or split or shares):
        got = f"--queries together with {'--subset' if subset else '--split' if split else '--shares'}"
        raise ConfigError(got, "one or the other", "leave one of them out; a file of queries needs neither")
    if users is not None and not by:
        raise ConfigError("--users without --by", "both", "name a column of the file, such as --by country")
    for name in metric or ():
        parse_metric(name.removeprefix("cold_"))
    trained = Run.load(run)
    changes = {"split": split, "shares": shares and f"[{shares}]", "policy": policy}
    config = trained.config.override(f"evaluation.{key}={value}" for key, value in changes.items() if value)
    check_shares(shares, config.evaluation.split)
    config = config.model_copy(update=given(dataset=dataset, states=states, images=images))
    columns = {}
    if by:
        data = open_dataset(config)
        table = None if users is None else read_users(users, data)
        columns = {name: column_of(name, table, data.items) for name in by}
    evaluations = assess(trained, config, subset or "test", baselines, queries, sampled)
    own = trained.config.recipe
    frame = evaluations[own].per_user
    if out:
        write_frame(frame, out)
    shown = metric or shown_metrics(config.evaluation.cutoffs)
    values = {name: each.metrics | named_metrics(each.per_user, shown) for name, each in evaluations.items()}
    found = intervals(frame, shown)
    groups = {name: group_by(frame, name, column) for name, column in columns.items()}
    if as_json:
        rows: dict[str, Any] = {
            name: {"protocol": each.protocol, **values[name]} for name, each in evaluations.items()
        }
        for name, each in evaluations.items() if groups else ():
            rows[name]["by"] = {
                column: group.metrics(each.per_user, shown, with_intervals=name == own)
                for column, group in groups.items()
            }
        rows[own] |= {"intervals": found, "future": evaluations[own].future}
        print_json(rows)
        return
    print_evaluations(own, evaluations[own], values, config.evaluation.cutoffs, shown, found)
    for column, group in groups.items():
        print_groups(column, own, group.metrics(frame, shown, with_intervals=True), shown)


@app.command()
def check(
    run: RunFolder,
    dataset: DatasetOption = None,
    states: StatesOption = None,
    images: ImagesOption = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for what was seen, which `iisan report` reads.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that the evaluation of a run is sound; exit code 1 if not. Show what its numbers rest on."""
    from iisan.checks.check import check_run
    from iisan.files import write_json

    check_ending(out, [".json"])
    found = check_run(run, given(dataset=dataset, states=states, images=images))
    if out is not None:
        write_json(out, found.as_json())
    print_json(found.as_json()) if as_json else print_checks(found)
    if found.failed:
        raise typer.Exit(1)


@app.command()
def recommend(
    run: RunFolder,
    user: UserOption = None,
    history: HistoryOption = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Recommend for every user, into --out.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write (.parquet, .csv, .jsonl).")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of items per list.")] = 10,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Allow seen items in the lists.")] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Condition on a column of the items (COLUMN alone: true); repeatable. Values of one column are "
            "alternatives.",
        ),
    ] = None,
    max_per: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN[=N]", help="Most items per value of a column in a list; N defaults to 1."),
    ] = None,
    near_duplicates: Annotated[
        float | None,
        typer.Option(metavar="COSINE", help="Largest cosine of the anchors of two items in a list."),
    ] = None,
    dataset: DatasetOption = None,
    ray: RayOption = None,
    as_json: Json = False,
) -> None:
    """Recommend the next items for a known user, any history, or all users. Resumes an interrupted --all-users."""
    import polars as pl

    from iisan.api import Recommender
    from iisan.machine import keep_freed_memory

    if (user is not None) + (history is not None) + all_users != 1:
        expected = "exactly one of --user, --history and --all-users"
        raise ConfigError("none or several users or histories are given", expected, "give one of them")
    if all_users and out is None:
        raise ConfigError("--all-users has no file to write to", "--out FILE.parquet", "add --out FILE.parquet")
    if ray is not None and not all_users:
        raise ConfigError("--ray is given for one user or history", "--all-users beside it", "leave --ray out")
    check_ending(out, FRAMES)
    options: dict[str, Any] = {
        "k": k,
        "filter_viewed": not include_seen,
        "where": conditions_of(where),
        "max_per": limits_of(max_per),
        "near_duplicates": near_duplicates,
    }
    recommender = Recommender.load(run, dataset)
    if all_users and out is not None:
        keep_freed_memory()
        with cluster_at(ray, say_to(True)) as cluster:
            written = recommender.recommend_all(out=out, cluster=cluster, **options)
        rows = written.select(pl.len()).collect().item()
        print(f"{rows:,} rows written to {out}", file=sys.stderr)
        return
    lists = recommender.recommend(user=user, history=_ids(history), **options)
    if out is not None:
        write_frame(lists, out)
        print(f"{lists.height:,} rows written to {out}", file=sys.stderr)
    elif as_json:
        print_json(lists.to_dicts())
    else:
        print_recommendations(f"next {_whose(user, history)}", lists.to_dicts())


@app.command()
def similar(
    run: RunFolder,
    items: Annotated[list[str], typer.Option("--item", metavar="ID", help="Item of the run; repeatable.")],
    by: Annotated[
        str,
        typer.Option(
            metavar="model|anchor|MODALITY",
            help="Vectors to compare: learned embeddings, anchors of all modalities, or of one such as text.",
        ),
    ] = "model",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of similar items per item.")] = 10,
    as_json: Json = False,
) -> None:
    """List the items that are most similar to some items."""
    from iisan.api import Recommender

    recommender = Recommender.load(run)
    found = recommender.similar_items(items, k, by)
    if as_json:
        print_json(found.to_dicts())
        return
    texts = recommender.run.items.select("item_id", "text")
    for (item,), lists in found.group_by("item_id", maintain_order=True):
        similar_to = lists.select("rank", "score", item_id="similar_id").join(
            texts, on="item_id", how="left", maintain_order="left"
        )
        print_recommendations(f"similar to {item} by {by}", similar_to.to_dicts())


@app.command()
def explain(
    run: RunFolder,
    item: Annotated[str, typer.Option(metavar="ID", help="Item whose score is explained.")],
    user: UserOption = None,
    history: HistoryOption = None,
    dataset: DatasetOption = None,
    as_json: Json = False,
) -> None:
    """Explain the score of an item for a user or history: its terms, and what each past item adds."""
    from iisan.api import Recommender

    if (user is None) == (history is None):
        raise ConfigError("neither or both of --user and --history are given", "one of them", "give one of them")
    found = Recommender.load(run, dataset).explain(item, user=user, history=_ids(history))
    if as_json:
        print_json(found.as_json())
    else:
        print_explanation(_whose(user, history), found)


def _ids(history: str | None) -> list[str] | None:
    return None if history is None else [item.strip() for item in history.split(",") if item.strip()]


def _whose(user: str | None, history: str | None) -> str:
    return f"for user {user}" if user is not None else f"after {history}"
