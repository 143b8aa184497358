"""The command line: ``sparsec COMMAND``, one file per command.

A command's file has ``register(commands, common)``, which adds its parser, and ``run(args)``,
which returns the exit code.  Only ``run`` imports what it needs, so ``--help`` is quick and man
pages can be made before anything is installed.
"""

from __future__ import annotations

import argparse
import errno
import io
import signal
import sys
import traceback
from collections.abc import Sequence

from sparsec import __version__, console, stopping
from sparsec.arguments import speaking
from sparsec.cli import (
    benchmark,
    buckets,
    check_hardware,
    compile,
    evaluate,
    inspect,
    run,
    serve,
    sparsify,
)
from sparsec.cli.common import HelpFormatter, Parser
from sparsec.cli.completion import SHELLS, PrintCompletion
from sparsec.console import say
from sparsec.errors import SparsecError

COMMANDS = (compile, inspect, benchmark, sparsify, evaluate, buckets, run, serve, check_hardware)

INTERRUPTED = 128 + signal.SIGINT
UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def all_parsers() -> list[argparse.ArgumentParser]:
    """The parser of the whole command line, and one per command; each becomes a man page."""
    main = Parser(
        prog="sparsec",
        description="ahead-of-time compiler for sparse transformers on CPUs",
        epilog="Exit codes: 0 success, 1 a gate of evaluate or the goal of sparsify missed, "
        "2 wrong usage, 3 bad model, 4 unsupported model, 5 C compiler, 6 artifact, 7 hardware, "
        "8 bad input, 130 interrupted.",
        formatter_class=HelpFormatter,
    )
    main.add_argument("--version", action="version", version=f"sparsec {__version__}")
    main.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print what completes this command line in a shell ({', '.join(SHELLS)}): for bash, "
        'eval "$(sparsec --print-completion bash)"',
    )
    common = Parser(add_help=False)
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
    console.open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model's or a file's name may have characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    with stopping.unwinding(), speaking("flags"):
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    verbose = False
    try:
        args = all_parsers()[0].parse_args(argv)
        verbose = args.verbose
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SparsecError as error:
        console.clear()
        if verbose:
            traceback.print_exc()
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        console.clear()
        say("interrupted")
        return INTERRUPTED
    except OSError as error:
        # Errors of files come as SparsecErrors: what is left is standard output.
        if error.filename is not None or error.errno not in UNWRITABLE:
            raise
        console.give_up(sys.stdout)
        if error.errno == errno.EPIPE:
            return 0  # commands print when their work is done: that nobody reads it undoes nothing
        say(f"error: cannot write standard output: {error.strerror}")
        return SparsecError.exit_code
    finally:
        try:
            sys.stdout.flush()  # what --help printed
        except OSError:
            console.give_up(sys.stdout)
