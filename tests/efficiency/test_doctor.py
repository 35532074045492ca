"""What `iisan doctor` finds: the machine, both precisions, what is missing and the line that installs it."""

import json
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch

from iisan import cli
from iisan.efficiency import doctor
from iisan.efficiency.doctor import diagnose
from iisan.machine import processor_name
from iisan.printing import print_diagnosis


@pytest.fixture
def machine(monkeypatch):
    """One where bf16 is twice as fast, torch too old, soundfile and scipy missing."""
    versions = {"torch": "2.5.1+cu118", "soundfile": None, "scipy": None}

    def version(name):
        if versions.get(name, "99") is None:
            raise PackageNotFoundError(name)
        return versions.get(name, "99")

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "time_products", lambda *_: {"fp32": [2.0, 2.0, 4.0], "bf16": [1.0, 1.0, 9.0]})


def test_a_diagnosis(machine):
    found = diagnose()
    assert (found["device"], found["threads"]) == (processor_name(), torch.get_num_threads())
    assert 0 < found["free_memory_bytes"] <= found["memory_bytes"]
    assert found["free_disk_bytes"] > 0
    # At most 2^28 multiplications, widths up to 1,024; in training two products and both gradients of each.
    assert found["speed"]["caching"]["fp32"] == 2 * 341 * 768 * 1024 / 2.0
    assert found["speed"]["training"]["bf16"] == 3 * 2 * 2 * 704 * 768 * 64 / 1.0
    assert [each["auto"] for each in found["speed"].values()] == ["bf16", "bf16"]
    libraries = {each["name"].lower(): each for each in found["libraries"]}
    assert {name for name, each in libraries.items() if not each["usable"]} == {"torch", "scipy"}
    assert (libraries["torch"]["installed"], libraries["torch"]["required"]) == ("2.5.1+cu118", ">=2.6")
    assert (found["extras"]["audio"], found["extras"]["lora"]) == (["soundfile"], [])
    assert "dev" not in found["extras"]


def test_every_cure_is_a_line_to_type(machine, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["iisan", "doctor"])
    cli.app(standalone_mode=False)
    out = capsys.readouterr().out
    assert 'pip install "iisan[audio]"' in out
    assert 'torch 2.5.1+cu118 is too old: pip install "torch>=2.6"' in out
    assert 'scipy is not installed: pip install "scipy>=1.11"' in out
    assert "iisan[lora]" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_machine_reads_the_same(machine, monkeypatch, capsys):
    monkeypatch.setattr(doctor.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sys.argv", ["iisan", "doctor", "--json"])
    cli.app(standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["offline"], found["extras"]["audio"]) == (True, ["soundfile"])
    assert found["speed"]["caching"]["auto"] == "bf16"


def test_nothing_is_wrong_where_nothing_is(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "version", lambda name: "99")
    monkeypatch.setattr("sys.argv", ["iisan", "doctor"])
    cli.app(standalone_mode=False)
    out = capsys.readouterr().out
    assert "pip install" not in out
    assert "every library that iisan needs is installed" in out


def test_gpus_are_named(machine, monkeypatch, capsys):
    gpus = [SimpleNamespace(name="GPU 9000", total_memory=24e9), SimpleNamespace(name="GPU 7", total_memory=8e9)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    print_diagnosis(diagnose())
    assert "device    GPU 9000 (24 GB), GPU 7 (8 GB)\n" in capsys.readouterr().out
