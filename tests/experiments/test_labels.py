import pytest

from iisan.experiments.labels import beside, inside, overlap, wrapped


def test_shared_area_of_boxes():
    assert overlap((0, 0, 4, 2), (3, 1, 9, 9)) == 1
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_places_near_the_spot_come_cheapest():
    # Radius 4 and a gap of 2, then half of a label of 20 by 6 points.
    dx, dy, far, price = min(beside(4, 10, 3), key=lambda place: place[3])
    assert (abs(dx), far, price) == (16, False, 0)
    assert dy == pytest.approx(0)
    assert inside([(1, 1), (4, 5)], (1, 1)) == [(0, 0, False, 0), (3, 4, False, 1)]


def test_long_names_are_broken_at_spaces():
    assert wrapped("uncached side network", 10) == "uncached\nside\nnetwork"
    assert wrapped("", 10) == ""
