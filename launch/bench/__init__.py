"""Measurements beside peers: one module a subject, each run with `python -m launch.bench.SUBJECT`."""
