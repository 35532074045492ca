"""Extraction and lists for all users on the workers of a Ray cluster: the functions of one machine, by shards."""
