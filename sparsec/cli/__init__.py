"""The command line: one file per command, each with `register` and `run`."""

from __future__ import annotations

import argparse


def all_parsers() -> list[argparse.ArgumentParser]:
    return [argparse.ArgumentParser("sparsec", description="x")]


def main() -> int:
    return 0
