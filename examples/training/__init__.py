"""Trains small BERT encoders for the tasks of examples/{ner,sentiment,qa}; see README.md."""
