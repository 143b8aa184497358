"""Random graphs, mutated models and damaged files: each ends in a correct artifact or an error."""
