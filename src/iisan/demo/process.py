"""How the users of the synthetic catalogue choose: a process whose every probability is known.

A user has a hidden style, which prefers one value of each attribute. Step by step the user takes an item
that was not taken before, with probability proportional to ``W[style, item]``, then the style may change.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from iisan.data.sequences import Index
from iisan.demo.products import EXTENDED_ATTRIBUTES, NUM_VALUES, Attributes, columns
from iisan.names import PAD

Floats = npt.NDArray[np.float64]

# Many styles and few purchases, so that content matters: with 60 to 400 styles ids alone overtook it.
NUM_STYLES = 700
DRIFT = 0.1  # probability that the style changes between two steps
SUCCESSORS = 4  # styles that a style usually changes to
NEW_ITEM_SHARE = 0.08
CATEGORY_WEIGHT, OTHER_WEIGHT = 1.8, 3.0  # log of the factor that a preferred value brings
APPEAL, LUCK = 0.9, 0.35  # spread of log popularity: what comes from an item's values, and the rest


@dataclass(frozen=True)
class Process:
    """The parameters of the users' behaviour, ``Z`` styles, ``N`` items, ``A`` attributes.

    Attributes:
        attributes: ``[N, A]`` value numbers of the items.
        popularity: ``[N]`` how much an item is taken regardless of taste.
        is_new: ``[N]`` items launched before the last step of every user, and unavailable until then.
        preferences: ``[Z, A]`` the value that a style prefers.
        weights: ``[A]`` log of the factor that a preferred value brings.
        initial: ``[Z]`` probability of the first style.
        transitions: ``[Z, Z]`` probability of the next step's style (column) given this one's (row).
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
        """The names of the attributes, ``[A]``."""
        return EXTENDED_ATTRIBUTES[: self.attributes.shape[1]]

    def attraction(self, attributes: tuple[str, ...] | None = None) -> Floats:
        """``W[z, i] = popularity_i · exp(Σ_a w_a [item i has style z's value of a])``, ``[Z, N]``.

        Args:
            attributes: names of the attributes that count, all where None; those left out are taken as having
                no effect.
        """
        logits = np.zeros((len(self.preferences), len(self.attributes)))
        for column in columns(self.names if attributes is None else attributes):
            logits += self.weights[column] * (
                self.preferences[:, column, None] == self.attributes[None, :, column]
            )
        return self.popularity * np.exp(logits)

    @cached_property
    def attraction_before_launch(self) -> Floats:
        """``attraction`` before the launch: new items cannot be taken."""
        return self.attraction() * ~self.is_new


def draw_process(attributes: Attributes, rng: np.random.Generator) -> Process:
    """Draw popularities, new items, styles and their transitions for a catalogue.

    Args:
        attributes: ``[N, A]`` value numbers of the items.
        rng: source of all draws.
    """
    count, kinds = attributes.shape
    # Most of what makes an item popular can be seen on it, or content could not predict it at all.
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
        weights=np.array(
            [CATEGORY_WEIGHT if name == "category" else OTHER_WEIGHT for name in EXTENDED_ATTRIBUTES[:kinds]]
        ),
        initial=np.full(NUM_STYLES, 1 / NUM_STYLES),
        transitions=transitions,
    )


class _Draw:
    """Draws column numbers from rows of probabilities, many at a time."""

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
    """Let users take ``lengths[u]`` items each; new items are available at each user's last step only.

    Returns:
        ``[users, max(lengths)]`` item numbers, oldest first, right-padded with ``PAD``.
    """
    before, after = _Draw(process.attraction_before_launch), _Draw(process.attraction())
    next_style = _Draw(process.transitions)
    taken = np.full((len(lengths), lengths.max()), PAD, dtype=np.int64)
    styles = rng.choice(len(process.initial), size=len(lengths), p=process.initial)
    for step in range(taken.shape[1]):
        for users, draw in (
            (np.flatnonzero(lengths - 1 > step), before),
            (np.flatnonzero(lengths - 1 == step), after),
        ):
            # Drawing again what was taken before leaves exactly the distribution over the items not taken.
            while len(users):
                items = draw(styles[users], rng)
                fresh = (taken[users, :step] != items[:, None]).all(axis=1)
                taken[users[fresh], step] = items[fresh]
                users = users[~fresh]
        styles = next_style(styles, rng)
    return taken
