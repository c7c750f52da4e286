"""Benchmarks: one script per question."""
