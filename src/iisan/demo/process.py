"""The behaviour of users of the synthetic catalogue: a process with known probabilities.

A user has a hidden style, which prefers one value of each attribute. In each step the user interacts with an item
that is not in the history yet, with probability proportional to ``W[style, item]``; then the style may change.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from iisan.data.sequences import Index
from iisan.demo.products import EXTENDED_ATTRIBUTES, NUM_VALUES, Attributes, columns
from iisan.names import PAD

Floats = npt.NDArray[np.float64]

# With 60 to 400 styles instead of 700, models of ids alone were better than models of content.
NUM_STYLES = 700
DRIFT = 0.1  # probability that the style changes between two steps
SUCCESSORS = 4  # usual next styles of a style
NEW_ITEM_SHARE = 0.08
CATEGORY_WEIGHT, OTHER_WEIGHT = 1.8, 3.0  # log of the factor for a preferred value
APPEAL, LUCK = 0.9, 0.35  # standard deviations of log popularity: from an item's attributes, and random


@dataclass(frozen=True)
class Process:
    """Parameters of the users' behaviour with ``Z`` styles, ``N`` items and ``A`` attributes.

    Attributes:
        attributes: Attribute values of the items, ``[N, A]``.
        popularity: Popularity of the items regardless of style, ``[N]``.
        is_new: Items that are available at each user's last step only, ``[N]``.
        preferences: Preferred attribute values of the styles, ``[Z, A]``.
        weights: Log of the factor for a preferred value, ``[A]``.
        initial: Probabilities of the first style, ``[Z]``.
        transitions: Probabilities of the next style (column) given the current one (row), ``[Z, Z]``.
    """

    attributes: Attributes
    popularity: Floats
    is_new: npt.NDArray[np.bool_]
    preferences: Attributes
    weights: Floats
    initial: Floats
    transitions: Floats

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the attributes, ``[A]``."""
        return EXTENDED_ATTRIBUTES[: self.attributes.shape[1]]

    def attraction(self, attributes: tuple[str, ...] | None = None) -> Floats:
        """``W[z, i] = popularity_i · exp(Σ_a w_a [item i has style z's value of a])`` for some attributes."""
        logits = np.zeros((len(self.preferences), len(self.attributes)))
        for column in columns(self.names if attributes is None else attributes):
            logits += self.weights[column] * (
                self.preferences[:, column, None] == self.attributes[None, :, column]
            )
        return self.popularity * np.exp(logits)

    @cached_property
    def attraction_before_launch(self) -> Floats:
        """``attraction`` before the launch, zero for new items."""
        return self.attraction() * ~self.is_new


def draw_process(attributes: Attributes, rng: np.random.Generator) -> Process:
    """Draw popularities, new items, styles and their transitions for items with attribute values ``[N, A]``."""
    count, kinds = attributes.shape
    # Popularity depends mostly on the attributes; otherwise content could not predict it.
    appeals = rng.standard_normal((kinds, NUM_VALUES))
    appeal = appeals[np.arange(kinds), attributes].sum(axis=1) / np.sqrt(kinds)
    popularity = np.exp(APPEAL * appeal + LUCK * rng.standard_normal(count))
    is_new = np.zeros(count, dtype=np.bool_)
    is_new[rng.choice(count, round(count * NEW_ITEM_SHARE), replace=False)] = True
    transitions = np.full((NUM_STYLES, NUM_STYLES), 0.2 * DRIFT / NUM_STYLES)
    for style in range(NUM_STYLES):
        transitions[style, style] += 1 - DRIFT
        transitions[style, rng.choice(NUM_STYLES, SUCCESSORS, replace=False)] += 0.8 * DRIFT / SUCCESSORS
    return Process(
        attributes,
        popularity,
        is_new,
        preferences=rng.integers(NUM_VALUES, size=(NUM_STYLES, kinds)),
        weights=np.where(np.array(EXTENDED_ATTRIBUTES[:kinds]) == "category", CATEGORY_WEIGHT, OTHER_WEIGHT),
        initial=np.full(NUM_STYLES, 1 / NUM_STYLES),
        transitions=transitions,
    )


class _Draw:
    """Vectorised sampling of column numbers from rows of probabilities."""

    def __init__(self, weights: Floats) -> None:
        cumulative = np.cumsum(weights, axis=1)
        cumulative /= cumulative[:, -1:]
        self.columns = weights.shape[1]
        # Row r occupies [r, r + 1), so one sorted list serves all rows.
        self.edges = (cumulative + np.arange(len(weights))[:, None]).ravel()

    def __call__(self, rows: Index, rng: np.random.Generator) -> Index:
        found = np.searchsorted(self.edges, rows + rng.random(len(rows)), side="right")
        return np.minimum(found - rows * self.columns, self.columns - 1)


def simulate(process: Process, lengths: Index, rng: np.random.Generator) -> Index:
    """Draw ``lengths[u]`` interactions of each user; new items are available at the last step only.

    Returns:
        Item numbers ``[users, max(lengths)]``, oldest first, right-padded with ``PAD``.
    """
    before, after = _Draw(process.attraction_before_launch), _Draw(process.attraction())
    next_style = _Draw(process.transitions)
    histories = np.full((len(lengths), lengths.max()), PAD, dtype=np.int64)
    styles = rng.choice(len(process.initial), size=len(lengths), p=process.initial)
    for step in range(histories.shape[1]):
        remaining = lengths - 1 - step
        for users, draw in ((np.flatnonzero(remaining > 0), before), (np.flatnonzero(remaining == 0), after)):
            # Redrawing items of the history gives exactly the distribution over the other items.
            while len(users):
                items = draw(styles[users], rng)
                fresh = (histories[users, :step] != items[:, None]).all(axis=1)
                histories[users[fresh], step] = items[fresh]
                users = users[~fresh]
        styles = next_style(styles, rng)
    return histories
