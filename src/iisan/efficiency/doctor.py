"""What this machine can do and what is missing: the report of ``iisan doctor``."""

import platform
import shutil
import statistics
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

from iisan.encoders.precision import Product, faster, feed_forward, time_products, timed_products
from iisan.machine import choose_device, device_name

#: Matrix products of caching states of BERT-base, and of training a side network on them; whether to train.
_WORK: dict[str, tuple[list[Product], bool]] = {
    "caching": ([feed_forward(4096, 768)], False),
    "training": ([(704, 768, 64), (704, 64, 768)], True),
}
#: Extras for the development of iisan.
_NOT_OFFERED = {"dev", "docs"}


def diagnose() -> dict[str, Any]:
    """Inspect the machine, and measure its speed for about half a second; nothing is downloaded.

    Returns:
        Facts by name, as JSON. ``speed`` has operations per second in both precisions and the choice of ``auto``,
        ``libraries`` the required ones, ``extras`` the libraries that each extra lacks.
    """
    device, memory, about = choose_device("auto"), psutil.virtual_memory(), metadata("iisan")
    requirements = [Requirement(each) for each in about.get_all("Requires-Dist", [])]
    required = [each for each in requirements if _needed(each)]
    missing = [each for each in requirements if each not in required and not _library(each)["usable"]]
    return {
        "iisan": about["Version"],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "device": device_name(device),
        "gpus": [
            {"name": gpu.name, "bytes": gpu.total_memory}
            for gpu in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ],
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "free_memory_bytes": memory.available,
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "speed": {name: _speed(device, *work) for name, work in _WORK.items()},
        "libraries": [_library(each) for each in required],
        "extras": {
            extra: [each.name for each in missing if _needed(each, extra)]
            for extra in sorted(set(about.get_all("Provides-Extra", [])) - _NOT_OFFERED)
        },
        "offline": constants.HF_HUB_OFFLINE,
        "model_cache": constants.HF_HUB_CACHE,
    }


def _speed(device: torch.device, products: list[Product], training: bool) -> dict[str, Any]:
    seconds = time_products(device, products, training)
    # A multiplication and its addition are two operations; the gradient of each factor is another product.
    sizes = timed_products(device, products)
    operations = sum(2 * rows * inner * outer for rows, inner, outer in sizes) * (3 if training else 1)
    rates: dict[str, float] = {name: operations / statistics.median(each) for name, each in seconds.items()}
    return {**rates, "auto": faster(seconds)}


def _needed(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _library(requirement: Requirement) -> dict[str, Any]:
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        installed = None
    return {
        "name": requirement.name,
        "installed": installed,
        "required": str(requirement.specifier),
        "usable": installed is not None and requirement.specifier.contains(installed, prereleases=True),
    }
