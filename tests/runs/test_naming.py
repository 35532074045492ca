import pytest

from iisan.runs.naming import short_names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/one", "runs/two"], ["one", "two"]),
        (["google/x", "facebook/x", "bert"], ["google/x", "facebook/x", "bert"]),
        (["/a/b/x", "/c/b/x", "/c/x"], ["a/b/x", "c/b/x", "c/x"]),
        (["x", "b/x"], ["x", "b/x"]),
        (["/x", "/b/x"], ["/x", "b/x"]),
        (["a/x", "a/x"], ["x", "x"]),
        ([], []),
    ],
)
def test_names_are_as_short_as_tells_them_apart(paths, names):
    assert short_names(paths) == names
