"""What the benchmarks share: models, limits, workers that take turns, tables and plots."""
