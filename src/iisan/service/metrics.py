"""Metrics of the service for Prometheus, and its logs."""

import json
import logging
import sys
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)


class Metrics:
    """Metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ("method", "route")
        self.requests = Counter("iisan_requests", "Requests.", (*labels, "status"), registry=registry)
        self.seconds = Histogram(
            "iisan_request_seconds", "Duration of requests.", labels, buckets=_SECONDS, registry=registry
        )
        self.errors = Counter("iisan_errors", "Faults of the service itself.", registry=registry)
        self.batches = Histogram(
            "iisan_batch_size",
            "Lists computed together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.items = Gauge("iisan_index_items", "Items that can be recommended.", ("run",), registry=registry)
        self.swaps = Counter("iisan_run_swaps", "Newer states that were taken over.", ("run",), registry=registry)


class JsonLines(logging.Formatter):
    """Formats log records as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_json(level: str) -> None:
    """Log everything to standard error as lines of JSON, warnings included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
