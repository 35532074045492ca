"""The import order of the house, and the promise of a light start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import iisan

ROOT = Path(iisan.__file__).parent
ORDER = [
    *(
        "errors",
        "names",
        "files",
        "machine",
        "progress",
        "ahead",
        "remote",
        "legacy",
        "nested",
        "config",
        "recipes",
        "data",
        "nn",
        "encoders",
        "states",
    ),
    *(
        "model",
        "losses",
        "evaluate",
        "runs",
        "train",
        "serve",
        "checks",
        "scale",
        "service",
        "efficiency",
        "api",
        "demo",
        "tune",
        "experiments",
        "printing",
        "cli",
    ),
]


def part_of(module):
    return module.split(".")[1] if "." in module else ""


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative import")


def test_a_file_imports_only_from_what_stands_above_it():
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        if relative == Path("__init__.py"):
            continue
        own = ORDER.index(relative.parts[0].removesuffix(".py"))
        for module in imports_of(path):
            if module.split(".")[0] != "iisan":
                continue
            assert module != "iisan", f"{relative} imports the package root"
            assert ORDER.index(part_of(module)) <= own, f"{relative} imports {module}, which stands below it"


def test_every_part_is_in_the_order():
    parts = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.name != "__init__.py"}
    assert {part for part in parts if not part.startswith(("__", "py.typed"))} == set(ORDER)


def test_only_encoders_and_the_demos_training_script_import_transformers():
    importers = {
        str(path.relative_to(ROOT).parts[0])
        for path in ROOT.rglob("*.py")
        if any(module.split(".")[0] == "transformers" for module in imports_of(path))
    }
    assert importers <= {"encoders", "demo"}


def test_files_stay_short():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")}
    assert max(lengths.values()) <= 500, lengths


def test_the_command_line_starts_without_heavy_libraries():
    code = (
        "import sys, iisan, iisan.cli\n"
        "heavy = {'torch', 'transformers', 'polars', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opening_a_dataset_loads_no_library_of_sounds_or_clips():
    code = (
        "import sys, iisan.data.dataset\n"
        "heavy = {'scipy.signal', 'soundfile', 'av', 'torch', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_scale_imports_ray_and_only_when_it_is_used():
    importers = {
        path.relative_to(ROOT).parts[0]
        for path in ROOT.rglob("*.py")
        if any(module.split(".")[0] == "ray" for module in imports_of(path))
    }
    assert importers == {"scale"}
    code = "import sys, iisan.api, iisan.scale.extraction, iisan.scale.lists; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_misspelt_name_is_an_error():
    assert iisan.Dataset.__name__ == "Dataset"
    with pytest.raises(AttributeError, match="Datset"):
        iisan.Datset  # noqa: B018
