"""Conditions under which costs were measured; costs are compared only under the same conditions."""

from collections.abc import Iterable, Mapping
from typing import Any


def conditions(facts: Mapping[str, Any]) -> str:
    """Describe machine, device, threads, processes and precision of a run's result or of a record.

    Version 0.1 recorded no precision, and only the type of the device.
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
    """List the distinct conditions of the runs of methods, with the methods of each if there are several."""
    methods: dict[str, list[str]] = {}
    for method, each in measured.items():
        for condition in dict.fromkeys(each):
            methods.setdefault(condition, []).append(method)
    if len(methods) == 1:
        return next(iter(methods))
    return "; ".join(f"{condition} ({', '.join(names)})" for condition, names in methods.items())


def why_not_compared(measured: Mapping[str, Iterable[str]]) -> str:
    """Say why costs are left out, and the cure; empty if all runs, by method, have the same conditions."""
    if len({condition for each in measured.values() for condition in each}) <= 1:
        return ""
    return (
        "costs and TPME are left out, as they need one machine, device, precision and number of threads, not "
        f"{listed(measured)}: train all alike, such as with --set training.precision=fp32"
    )
