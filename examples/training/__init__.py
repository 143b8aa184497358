"""Trains the small BERT encoders of examples/models; see README.md."""
