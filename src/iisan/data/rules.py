"""Rules for which interactions count, by their events and their weights."""

import difflib
import shlex
from typing import Any

import polars as pl

from iisan.data.clean import clean_ids, clean_weights
from iisan.data.options import ALL, PrepareOptions
from iisan.data.problems import Problems, printable
from iisan.data.tables import Role, Table
from iisan.errors import DataError
from iisan.names import EVENT, WEIGHT

#: Default names of the columns, and the options with their rules.
_COLUMNS = {EVENT: (EVENT, "event_type"), WEIGHT: (WEIGHT, "rating")}
_OPTIONS = {EVENT: "events", WEIGHT: "min_weight"}
_SHOWN = 5


def rule_roles(options: PrepareOptions, *, histories: bool = False) -> list[Role]:
    """Columns of interactions that rules are about.

    In ``histories``, none is required, and a column may have its name in the dataset or a default one.
    """
    roles = []
    for name, defaults in _COLUMNS.items():
        rule, given = _rule(options, name), getattr(options, name)
        if given is None and rule != ALL:
            cure = "leave out the other one" if histories else None
            required = rule is not None and not histories
            roles.append(Role(name, defaults, required, cure, single=True))
        elif given is not None and not histories:
            roles.append(Role.of(name, given))
        elif rule != ALL:
            roles.append(Role(name, (given, *defaults), required=False))
    return roles


def apply_rules(
    table: Table, options: PrepareOptions, problems: Problems, *, histories: bool = False
) -> tuple[Table, dict[str, int]]:
    """Keep the interactions that count, and drop the columns of events and weights.

    Without a rule, all values of a column must be equal. Weights are those of the rows that the rule for events
    keeps.

    Args:
        table: Interactions with columns of ``rule_roles``.
        options: The rules; for ``histories``, those that the run's dataset was prepared with.
        problems: Receives rows without an event or a finite weight, unless all rows count or lack one.
        histories: Whether the rows are only a few users' histories, in which any event may be missing.

    Returns:
        The table, and the number of interactions left out by column, for columns with a rule other than ``all``.

    Raises:
        DataError: Different values without a rule, a rule that no row meets, or a bad row (policy ``stop``).
    """
    left_out = {}
    for name in _COLUMNS:
        if name not in table.frame.columns:
            continue
        rule = _rule(options, name)
        if rule != ALL and (rule is not None or table.frame[name].count()):
            table, values = _cleaned(table, name, problems, histories)
            if rule is not None:
                if not histories and len(values):
                    _check_met(values, rule, table.name)
                kept = values.is_in(list(rule)) if name == EVENT else values >= rule
                left_out[name] = len(kept) - int(kept.sum())
                table = Table(table.frame.filter(kept), table.where)
            elif values.n_unique() > 1:
                raise _undecided(values, table.name, histories)
        table = Table(table.frame.drop(name), table.where)
    return table, left_out


def described_rules(options: PrepareOptions) -> dict[str, str]:
    """The interactions that count, in words, by column with a rule."""
    rules = {}
    for name in _COLUMNS:
        rule = _rule(options, name)
        if rule == ALL:
            rules[name] = f"all {name}s"
        elif rule is not None:
            rules[name] = f"the events {', '.join(rule)}" if name == EVENT else f"weights of {_text(rule)} or more"
    return rules


def _rule(options: PrepareOptions, name: str) -> Any:
    return getattr(options, _OPTIONS[name])


def _cleaned(table: Table, name: str, problems: Problems, histories: bool) -> tuple[Table, pl.Series]:
    """Reject the rows of a table without a value; return it and the values of the others."""
    column = table.frame[name]
    if name == EVENT:
        values = clean_ids(column, table.name).str.strip_chars()
        bad = values.is_null() | (values == "")
        reason, expected = "missing event", "an event in every row"
    else:
        values = clean_weights(column)
        bad = values.is_null()
        reason, expected = "unparsable weight", "a finite number in every row"
    hint = "" if histories else f", or {_all(name)} if every row counts"
    return table.reject(pl.lit(bad), name, reason, expected, problems, hint), values.filter(~bad)


def _check_met(values: pl.Series, rule: Any, table: str) -> None:
    """Raise a ``DataError`` if a named event does not occur, or no weight is large enough."""
    if values.name == WEIGHT:
        if (values < rule).all():
            got = f"{table} has no weight of {_text(rule)} or more"
            expected = f"a minimum of at most {_text(values.max())}, its largest weight"
            raise DataError(got, expected, "lower --min-weight (min_weight=…)")
        return
    known = values.unique().to_list()
    for event in rule:
        if event not in known:
            close = difflib.get_close_matches(event, known, n=1)
            cure = f"did you mean {close[0]!r}?" if close else "correct --events (events=…)"
            got = f"{table} has no event '{_text(event)}'"
            raise DataError(got, f"one of its events: {_listed(values)}", cure)


def _undecided(values: pl.Series, table: str, histories: bool) -> DataError:
    name = values.name
    got = f"{table} has {values.n_unique():,} different {name}s: {_listed(values)}"
    if histories:
        expected = f"rows that all count, or the run's dataset at hand, prepared with a rule for {name}s"
        return DataError(got, expected, f"leave out the rows that do not count, and the column with the {name}")
    if name == EVENT:
        some = printable(",".join(_counts(values)[name].head(2)))
        cure = f"name those that count with --events {shlex.quote(some)} (events={some!r})"
    else:
        middle = _text(values.unique().sort()[values.n_unique() // 2])
        cure = f"pass --min-weight {middle} (min_weight={middle}) to leave out smaller ones"
    return DataError(got, "a rule for which of them count", f"{cure}, or count all with {_all(name)}")


def _all(name: str) -> str:
    option = _OPTIONS[name]
    return f"--{option.replace('_', '-')} {ALL} ({option}={ALL!r})"


def _counts(values: pl.Series) -> pl.DataFrame:
    """Distinct values and their ``count``, most common first."""
    return values.value_counts().sort("count", values.name, descending=[True, False])


def _listed(values: pl.Series) -> str:
    counts = _counts(values)
    more = f" and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else ""
    rows = (
        f"{_text(value)} ({count:,} row{'s' * (count > 1)})" for value, count in counts.head(_SHOWN).iter_rows()
    )
    return ", ".join(rows) + more


def _text(value: Any) -> str:
    return printable(value) if isinstance(value, str) else f"{value:.15g}"
