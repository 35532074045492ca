"""Finished runs: opened, evaluated, compared."""
