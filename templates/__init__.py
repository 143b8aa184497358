"""Jinja2 templates of the generated C, and the public C header `sparsec.h`."""
