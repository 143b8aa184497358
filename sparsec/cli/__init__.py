"""The command line: ``sparsec COMMAND``, one file per command.

A command's file has ``register(commands, common)``, which adds its parser, and ``run(args)``,
which returns the exit code.  Only ``run`` imports what it needs, so ``--help`` is quick and man
pages can be made before anything is installed.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from sparsec import __version__
from sparsec.cli import benchmark, buckets, check_hardware, compile, inspect, serve
from sparsec.cli.common import HelpFormatter
from sparsec.errors import SparsecError

COMMANDS = (compile, inspect, benchmark, buckets, serve, check_hardware)

INTERRUPTED = 130
TERMINATED = 143


def all_parsers() -> list[argparse.ArgumentParser]:
    """The parser of the whole command line, and one per command; each becomes a man page."""
    main = argparse.ArgumentParser(
        prog="sparsec",
        description="ahead-of-time compiler for sparse transformers on CPUs",
        epilog="Exit codes: 0 success, 2 wrong usage, 3 bad model, 4 unsupported model, "
        "5 C compiler, 6 artifact, 7 hardware, 8 bad input, 130 interrupted.",
        formatter_class=HelpFormatter,
    )
    main.add_argument("--version", action="version", version=f"sparsec {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    loudness = common.add_mutually_exclusive_group()
    loudness.add_argument(
        "-v", "--verbose", action="store_true", help="say more; show tracebacks of errors"
    )
    loudness.add_argument("-q", "--quiet", action="store_true", help="no progress lines")
    commands = main.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    commands.required = True
    return [main, *(command.register(commands, common) for command in COMMANDS)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; those of the process when absent.

    Returns:
        The exit code: 0, or the ``exit_code`` of the error, which is told in one line.
    """
    args = all_parsers()[0].parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model's or a file's name may have characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    previous = _unwind_on_sigterm()
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SparsecError as error:
        if args.verbose:
            traceback.print_exc()
        print(f"sparsec: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sparsec: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away: nobody is left to tell, so let exit flush to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _unwind_on_sigterm() -> signal._HANDLER:
    """Make SIGTERM clean up as Ctrl-C does: temporary folders go away."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(TERMINATED)

    try:
        return signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        return None
