"""Benchmarks: what they measure, and on which models, is said at the top of each."""
