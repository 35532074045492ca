"""Where and how costs were measured: they are compared only if that is the same for all."""

from collections.abc import Iterable, Mapping
from typing import Any


def conditions(facts: Mapping[str, Any]) -> str:
    """Machine, device, threads, processes and precision of a run's result, or of a record, in words.

    Version 0.1 recorded no precision, and of the device only its kind.
    """
    machine = facts.get("machine") or {}
    processor, cores = machine.get("processor", "unknown processor"), machine.get("cores")
    device, threads, processes = facts.get("device"), facts.get("threads"), facts.get("processes") or 1
    parts = [
        None if device in (None, "cpu", processor) else device,
        processor,
        cores and f"{cores} cores",
        threads and f"{threads} thread{'s' if threads > 1 else ''}",
        f"{processes} processes" if processes > 1 else None,
        facts.get("precision") or "unknown precision",
    ]
    return ", ".join(part for part in parts if part)


def listed(measured: Mapping[str, Iterable[str]]) -> str:
    """Distinct conditions, each with its methods where there are several.

    Args:
        measured: method -> conditions of its runs.
    """
    methods: dict[str, list[str]] = {}
    for method, each in measured.items():
        for condition in dict.fromkeys(each):
            methods.setdefault(condition, []).append(method)
    if len(methods) == 1:
        return next(iter(methods))
    return "; ".join(f"{condition} ({', '.join(names)})" for condition, names in methods.items())


def why_not_compared(measured: Mapping[str, Iterable[str]]) -> str:
    """Why costs are left out of a comparison, and the cure; empty if all were measured under the same conditions.

    Args:
        measured: method -> conditions of its runs.
    """
    if len({condition for each in measured.values() for condition in each}) <= 1:
        return ""
    return (
        "costs and TPME are left out, as they need one machine, device, precision and number of threads, not "
        f"{listed(measured)}: train all alike, such as with --set training.precision=fp32"
    )
