"""Tuning: a search for the settings that validate best."""
