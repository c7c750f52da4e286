"""Benchmarks: one script per question. `make bench` runs them and writes `RESULTS.md`.

Ratios are taken within one run: machines differ and are noisy, so no figure means much alone.
"""
