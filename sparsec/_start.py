"""What has to be settled before anything else is imported: where the parts of this package are, and
that nothing comes from the working directory.

Imports only what the interpreter has loaded by itself.
"""

from __future__ import annotations

import os
import sys


def _leave_working_directory() -> None:
    """``python -m sparsec`` puts the working directory first on the path; modules that happen to be
    called like ones that we use would be run."""
    started = zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    ours = any(
        flag[:1] == "-" and flag[-1:] == "m" and name.split(".")[0] == "sparsec"
        for flag, name in started
    ) or any(argument[:9] == "-msparsec" for argument in sys.orig_argv)
    if sys.argv[:1] == ["-m"] and ours and sys.path[:1] in ([""], [os.getcwd()]):
        del sys.path[0]


def _find_parts() -> None:
    """In the root of the sources, ``import sparsec`` finds a folder without most of its parts: the
    package that is installed takes its place; if there is none, the other folders of the sources
    are its parts."""
    package = sys.modules["sparsec"]
    if any(os.path.isdir(os.path.join(folder, "runtime")) for folder in package.__path__):
        return
    from importlib.machinery import PathFinder
    from importlib.util import find_spec, module_from_spec

    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    others = [entry for entry in sys.path if os.path.realpath(entry or ".") != root]
    spec = PathFinder.find_spec("sparsec", others)
    if spec is not None and spec.origin is not None and spec.loader is not None:
        installed = module_from_spec(spec)
        sys.modules["sparsec"] = installed
        spec.loader.exec_module(installed)
    elif find_spec("sparsec.runtime") is None:  # an editable installation knows where it is
        package.__path__.append(root)


_leave_working_directory()
_find_parts()
