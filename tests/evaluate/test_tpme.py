import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iisan.errors import ConfigError
from iisan.evaluate.tpme import PAPER, Measurement, Weights, parse_weights, read_csv, shares, tpme, winners

# The published measurements on Scientific: seconds an epoch, trainable parameters, GB.
PUBLISHED = [
    Measurement("FFT", 443, 195e6, 46.76),
    Measurement("Adapter", 354, 5e6, 37.82),
    Measurement("LoRA", 378, 0.8e6, 39.07),
    Measurement("BitFit", 403, 0.4e6, 36.97),
    Measurement("IISAN uncached", 179, 4e6, 8.32),
    Measurement("IISAN cached", 22, 4e6, 3.11),
]
# Best in time, in parameters, in memory; the others share the worst value each time.
SPECIALISTS = [Measurement("quick", 1, 9, 9), Measurement("small", 5, 2, 9), Measurement("lean", 5, 9, 3)]

factor = st.integers(0, 10**12)
measurements = st.lists(st.tuples(factor, factor, factor), min_size=2, max_size=6).map(
    lambda rows: [Measurement(f"m{number}", *row) for number, row in enumerate(rows)]
)


def test_the_published_row_follows_from_the_published_columns():
    percent = {name: 100 * value for name, value in tpme(PUBLISHED).items()}
    # The print says 70.82 for BitFit, which its own columns do not give.
    expected = [100, 71.50, 75.14, 75.63, 22.34, 0.19]
    assert list(percent) == [each.name for each in PUBLISHED]
    assert list(percent.values()) == pytest.approx(expected, abs=0.02)


def test_one_method_can_be_measured_by_the_extremes_of_another_set():
    # The full model of the ablations is the uncached row, which keeps its number though it stands alone.
    full = Measurement("full", 179, 4e6, 8.32)
    assert 100 * tpme([full], extremes=PUBLISHED)["full"] == pytest.approx(22.34, abs=0.02)
    assert tpme([], extremes=PUBLISHED) == {}


def test_the_compared_set_decides():
    percent = 100 * tpme([each for each in PUBLISHED if each.name != "FFT"])["Adapter"]
    time, memory = (354 - 22) / (403 - 22), (37.82 - 3.11) / (39.07 - 3.11)
    assert percent == pytest.approx(100 * (0.45 * time + 0.10 + 0.45 * memory))


def test_two_methods_by_hand():
    # a is worse in time and memory, b in parameters.
    two = [Measurement("a", 10, 1, 8), Measurement("b", 5, 3, 2)]
    assert tpme(two) == pytest.approx({"a": 0.9, "b": 0.1})
    assert tpme(two, Weights(0.2, 0.7, 0.1)) == pytest.approx({"a": 0.3, "b": 0.7})


def test_three_methods_by_hand():
    three = [Measurement("a", 10, 0, 1), Measurement("b", 40, 6, 4), Measurement("c", 20, 2, 5)]
    weights = Weights(0.5, 0.25, 0.25)
    c = Fraction(1, 2) * Fraction(10, 30) + Fraction(1, 4) * Fraction(2, 6) + Fraction(1, 4)
    b = Fraction(1, 2) + Fraction(1, 4) + Fraction(1, 4) * Fraction(3, 4)
    assert tpme(three, weights) == pytest.approx({"a": 0, "b": float(b), "c": float(c)})


def test_values_outside_the_extremes_are_not_clipped():
    extremes = [Measurement("low", 10, 10, 10), Measurement("high", 20, 20, 20)]
    outside = [Measurement("under", 5, 5, 5), Measurement("over", 30, 30, 30)]
    assert tpme(outside, extremes=extremes) == pytest.approx({"under": -0.5, "over": 2})


def test_a_factor_without_spread_contributes_nothing():
    same_memory = [Measurement("a", 1, 1, 7), Measurement("b", 2, 2, 7)]
    assert tpme(same_memory) == pytest.approx({"a": 0, "b": 0.55})


@given(measurements)
def test_shares_of_one(compared):
    values = list(tpme(compared).values())
    assert min(values) >= 0
    assert max(values) <= 1 + 1e-12


@given(measurements, st.tuples(*3 * [st.sampled_from([1 / 3600, 1e-6, 1000, 2**30])]))
def test_units_do_not_matter(compared, units):
    time, parameters, memory = units
    converted = [
        Measurement(each.name, each.seconds * time, each.parameters * parameters, each.memory * memory)
        for each in compared
    ]
    assert tpme(converted) == pytest.approx(tpme(compared), abs=1e-9)


def test_weights_as_they_are_typed():
    assert parse_weights("paper") == PAPER == Weights(0.45, 0.10, 0.45)
    assert parse_weights("0.3, 0.1, 0.6") == Weights(0.3, 0.1, 0.6)
    for wrong in ("edge", "0.5,0.5", "0.3,0.1,0.1,0.5", ""):
        with pytest.raises(ConfigError, match="'paper', or time,parameters,memory"):
            parse_weights(wrong)
    with pytest.raises(ConfigError, match="sum to 1"):
        parse_weights("0.3,0.1,0.5")


def test_each_corner_is_won_by_its_specialist():
    won = winners(SPECIALISTS, steps=1)
    # One step leaves nothing but the corners, ordered by time, then by parameters.
    assert won == [(Weights(0, 0, 1), "lean"), (Weights(0, 1, 0), "small"), (Weights(1, 0, 0), "quick")]
    assert shares(SPECIALISTS, steps=1) == pytest.approx({"quick": 1 / 3, "small": 1 / 3, "lean": 1 / 3})


def test_ties_are_listed_in_order_and_divided():
    won = winners(SPECIALISTS, steps=2)
    # Each loses all but its own weight, so the middle of an edge is shared by the two specialists at its ends.
    assert [(weights.time, weights.parameters, name) for weights, name in won] == [
        (0, 0, "lean"),
        (0, 0.5, "small"),
        (0, 0.5, "lean"),
        (0, 1, "small"),
        (0.5, 0, "quick"),
        (0.5, 0, "lean"),
        (0.5, 0.5, "quick"),
        (0.5, 0.5, "small"),
        (1, 0, "quick"),
    ]
    assert shares(SPECIALISTS, steps=2) == pytest.approx({"quick": 1 / 3, "small": 1 / 3, "lean": 1 / 3})


def test_the_grid_agrees_with_single_evaluations():
    won = winners(PUBLISHED)
    assert len({weights for weights, _ in won}) == 51 * 52 // 2
    for weights, name in won[::37]:
        scores = tpme(PUBLISHED, weights)
        assert scores[name] == pytest.approx(min(scores.values()), abs=1e-12)


def test_shares_in_the_published_table():
    # BitFit has the fewest parameters, so it wins where they are nearly all that counts; IISAN cached elsewhere.
    won = shares(PUBLISHED, steps=100)
    assert sum(won.values()) == pytest.approx(1)
    assert won["IISAN cached"] > 0.99
    assert won["BitFit"] > 0
    assert won["FFT"] == won["IISAN uncached"] == 0


def test_all_alike_share_evenly():
    alike = [Measurement(name, 1, 1, 1) for name in "abcd"]
    assert shares(alike, steps=3) == pytest.approx(dict.fromkeys("abcd", 0.25))


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
@pytest.mark.parametrize("field", ["seconds", "parameters", "memory"])
def test_impossible_measurements_are_refused(field, value):
    with pytest.raises(ConfigError, match=rf"{field} {value} of 'LoRA'"):
        Measurement(**{"name": "LoRA", "seconds": 1, "parameters": 1, "memory": 1, field: value})


@pytest.mark.parametrize("weights", [(0.5, 0.5, 0.5), (1.2, -0.2, 0), (math.nan, 0.5, 0.5), (0, 0, 0)])
def test_weights_that_do_not_share_one_are_refused(weights):
    with pytest.raises(ConfigError, match="sum to 1"):
        Weights(*weights)


def test_too_few_methods_are_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        tpme(PUBLISHED[:1])
    with pytest.raises(ConfigError, match="at least 2"):
        tpme(PUBLISHED, extremes=PUBLISHED[:1])
    with pytest.raises(ConfigError, match="at least 2"):
        winners([])


def test_a_name_twice_is_refused():
    with pytest.raises(ConfigError, match="'LoRA' occurs twice"):
        tpme([*PUBLISHED, PUBLISHED[2]])


def test_an_empty_name_and_an_empty_grid_are_refused():
    with pytest.raises(ConfigError, match="without a name"):
        Measurement("", 1, 1, 1)
    with pytest.raises(ConfigError, match="steps 0"):
        shares(PUBLISHED, steps=0)


def test_read_csv(tmp_path):
    path = tmp_path / "measured.csv"
    path.write_text(
        'memory,name,note,seconds,parameters\n46.76,FFT,"a, b",443,195e6\n 3.11,IISAN cached,,22,4000000\n'
    )
    assert read_csv(path) == [PUBLISHED[0], PUBLISHED[5]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,seconds,memory\na,1,1\n", r"has the columns name, seconds, memory; .*: add parameters$"),
        (
            "name,seconds,parameters,memory\na,1,4 M,1\n",
            r"columns name, .*, memory\) holds '4 M' as parameters of 'a'",
        ),
        ("name,seconds,parameters,memory\na,1,2,\n", "holds '' as memory of 'a'"),
        ("name,seconds,parameters,memory\na,-1,2,3\n", r"seconds -1\.0 of 'a'"),
        ("name,seconds,parameters,memory\n,1,2,3\n", "without a name"),
        ("name,seconds,parameters,memory\na,1,2,3,4\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_unusable_tables_are_refused_in_one_sentence(tmp_path, text, message):
    path = tmp_path / "measured.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_csv(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_csv(tmp_path)
    with pytest.raises(ConfigError, match=r"nowhere\.csv cannot be read"):
        read_csv(tmp_path / "nowhere.csv")


def test_numbers_are_plain_floats():
    assert all(type(value) is float for value in (*tpme(PUBLISHED).values(), *shares(PUBLISHED).values()))
    assert not isinstance(winners(PUBLISHED)[0][0].time, np.floating)
