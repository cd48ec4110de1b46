"""Measurements, run by `make bench`; their table is docs/reference/benchmarks.md."""
