"""Prefetched results come in order, errors reach the caller, and no thread is left running."""

import threading

import pytest

from iisan.ahead import ahead


def test_preparing_ahead_keeps_order_and_errors() -> None:
    assert list(ahead(lambda x: x * x, range(20), 3)) == [x * x for x in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda x: 1 // x, [1, 2, 0, 3], 2))
    before = threading.active_count()
    results = ahead(lambda x: x, range(100), 2)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before


def test_without_workers_everything_runs_in_this_thread() -> None:
    assert list(ahead(lambda _: threading.current_thread(), range(2), 0)) == 2 * [threading.current_thread()]
    assert list(ahead(lambda _: threading.current_thread(), range(2), 1)) != 2 * [threading.current_thread()]
