"""The wheel, built and installed in an environment of its own, has all that the command line needs."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", out, ROOT], check=True)
    (path,) = out.glob("iisan-*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {Path(name).parts[0] for name in names} == {"iisan", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    package = ROOT / "src" / "iisan"
    files = {path.relative_to(package.parent).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("iisan/")} == {
        name for name in files if "__pycache__" not in name
    }


def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    install = ["install", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    # Its dependencies are those installed here: a path file adds their folder, and not this checkout.
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments):
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True}
        return subprocess.run(arguments, **options).stdout

    assert Path(run(python, "-c", "import iisan; print(iisan.__file__)").strip()).is_relative_to(tmp_path)
    found = json.loads(run(python.with_name("iisan"), "doctor", "--json"))
    assert found["iisan"] == wheel.name.split("-")[1]
    assert "prepare" in run(python.with_name("iisan"), "--help")
