"""C compilers behind one small interface: find one, name its version, and give its commands.

A toolchain is a subclass of :class:`Toolchain` and a row in :data:`KINDS`.  Commands use paths
relative to the C tree only, so that nothing in what they write depends on where it was built.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sparsec.arguments import argument
from sparsec.errors import ToolchainError
from sparsec.targets import Target, host_arch

# errno and traps are never looked at, and a*b+c is fused only where the kernels ask for it.
SEMANTICS = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")

COMPILE = ("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", *SEMANTICS)

# No build id and no symbols: what is left depends on the code alone.
LINK = ("-shared", "-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--no-undefined")

# Which libraries a bucket looks for beside itself, wherever the artifact is moved.
BESIDE_ITSELF = ("-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN")

INSTALL_HINT = (
    'install gcc or clang, or let pip do it: pip install "sparsec[cc]" brings the zig C compiler'
)


@dataclass(frozen=True)
class Toolchain:
    """A C compiler that was found.

    Attributes:
        command: what starts it, e.g. ``("gcc",)``.
        version: its version, e.g. ``12.2.0``.
    """

    command: tuple[str, ...]
    version: str

    kind: ClassVar[str] = ""

    def target_flags(self, target: Target) -> tuple[str, ...]:
        """Flags that let the compiler use what the target promises, and nothing else."""
        # CPU detection, manifests and zig have names without dots and hyphens.
        names = (f.replace("sse4_", "sse4.").replace("amx_", "amx-") for f in target.features)
        return (*(f"-m{name}" for name in names), *target.tuning)

    def base_flags(self) -> tuple[str, ...]:
        """Flags that every compilation and link gets."""
        return ()

    def link_flags(self) -> tuple[str, ...]:
        """Flags of every link."""
        return LINK

    def flags(self, target: Target) -> tuple[str, ...]:
        """All flags that decide what the code is; recorded in the manifest."""
        return (*self.base_flags(), *COMPILE, *self.target_flags(target))

    def compile_command(self, source: str, output: str, target: Target) -> list[str]:
        """The command that makes an object file of a .c or .S file of the C tree."""
        return [*self.command, *self.flags(target), "-I.", "-c", source, "-o", output]

    def link_command(
        self, objects: Sequence[str], output: str, libraries: Sequence[str] = ()
    ) -> list[str]:
        """The command that makes a shared library.

        Args:
            objects: object files.
            output: where the library goes; its file name becomes its soname.
            libraries: other libraries of the artifact that it needs.
        """
        soname = f"-Wl,-soname,{Path(output).name}"
        beside = BESIDE_ITSELF if libraries else ()
        head = [*self.command, *self.base_flags(), *self.link_flags(), soname, *beside]
        return [*head, *objects, *libraries, "-lm", "-o", output]

    @property
    def name(self) -> str:
        """Kind and version for people."""
        return f"{self.kind} {self.version}"


class Gcc(Toolchain):
    """GNU C."""

    kind = "gcc"

    def flags(self, target: Target) -> tuple[str, ...]:
        # Induction variables may leave addresses that start from 0, which these analyses take for
        # accesses that cannot be: GCC 12 then drops calls as if nobody read what they write.
        blind = ["-fno-ipa-pure-const"]
        if int(self.version.split(".")[0]) >= 11:
            blind.append("-fno-ipa-modref")
        return (*super().flags(target), *blind)

    def link_flags(self) -> tuple[str, ...]:
        # libgcc's helpers go into the library: it must need nothing but libc and libm.
        return (*LINK, "-static-libgcc")


class Clang(Toolchain):
    """LLVM's C compiler."""

    kind = "clang"


class Zig(Toolchain):
    """``zig cc``: clang with a libc of its own; comes as a wheel, so pip can install it."""

    kind = "zig"

    def target_flags(self, target: Target) -> tuple[str, ...]:
        # zig switches off every feature that its -mcpu does not name, whatever -m flags say.
        if target.arch != "x86_64":
            return target.tuning
        features = "".join(f"+{feature}" for feature in target.features)
        return (f"-mcpu=x86_64{features}", *target.tuning)

    def base_flags(self) -> tuple[str, ...]:
        # Without a target zig builds for the very CPU it runs on and the libc it finds; and it
        # makes undefined behaviour trap unless told not to.
        return ("-target", f"{host_arch()}-linux-gnu", "-fno-sanitize=undefined")


KINDS: dict[str, type[Toolchain]] = {kind.kind: kind for kind in (Gcc, Clang, Zig)}


def find(cc: str | None = None) -> Toolchain:
    """The C compiler to use.

    Args:
        cc: a command (``gcc-13``, ``python -m ziglang cc``), or ``zig`` for the wheel's compiler.
            When absent: ``$CC``, then the first of cc, gcc, clang, and the ziglang wheel.

    Raises:
        ToolchainError: none is there, or the given one does not work; says what to install.
    """
    asked = cc or os.environ.get("CC", "")
    if asked.strip():
        command = _zig_command() if asked.strip() == "zig" else _split(asked)
        origin = argument("cc") if cc else "$CC"
        if command is None or shutil.which(command[0]) is None:
            raise ToolchainError(f"{origin} names {asked!r}, which is not here; {INSTALL_HINT}")
        return _identify(command)
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return _identify((name,))
    zig = _zig_command()
    if zig is not None:
        return _identify(zig)
    raise ToolchainError(f"there is no C compiler on this machine; {INSTALL_HINT}")


def _split(command: str) -> tuple[str, ...]:
    """A command's words; one that is the path of a program as it is may have spaces."""
    if shutil.which(command.strip()):
        return (command.strip(),)
    try:
        return tuple(shlex.split(command))
    except ValueError as error:  # a quotation mark that nobody closes
        raise ToolchainError(f"{command!r} is no command: {error}") from None


def _zig_command() -> tuple[str, ...] | None:
    wheel = importlib.util.find_spec("ziglang")
    if wheel is not None and wheel.origin is not None:
        # The program itself: `python -m` would import from the working directory.
        program = Path(wheel.origin).with_name("zig")
        if program.is_file():
            return (str(program), "cc")
    return ("zig", "cc") if shutil.which("zig") else None


def _identify(command: tuple[str, ...]) -> Toolchain:
    """Find out by its own words which compiler a command is."""
    if len(command) > 1 and "zig" in " ".join(command) and command[-1] == "cc":
        return Zig(command, _first_line([*command[:-1], "version"]))
    text = _first_line([*command, "--version"])
    clang = re.search(r"clang version (\S+)", text)
    if clang:
        return Clang(command, clang.group(1))
    # Clang claims to be a gcc of long ago under -dumpfullversion, hence the order.
    version = _first_line([*command, "-dumpfullversion"])
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise ToolchainError(
            f"{shlex.join(command)} says {text!r} of itself, which is neither gcc, clang nor zig; "
            f"give another compiler with {argument('cc')}, or {INSTALL_HINT}"
        )
    return Gcc(command, version)


def _first_line(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
    except OSError as error:
        raise ToolchainError(f"cannot start {shlex.join(command)}: {error.strerror}") from error
    if result.returncode:
        raise ToolchainError(
            f"{shlex.join(command)} failed: {(result.stderr or result.stdout).strip()[:200]}"
        )
    return next(iter(result.stdout.splitlines()), "").strip()


class Runner:
    """Runs commands in a C tree, from any number of threads, until :meth:`stop`.

    Args:
        folder: the C tree's root.
        kept: where the user finds the C, if it is kept; for messages.
    """

    def __init__(self, folder: Path, kept: Path | None = None) -> None:
        self.folder = folder
        self.kept = kept
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()
        _runners.add(self)

    def run(self, command: Sequence[str]) -> None:
        """Run a compiler or linker command to its end.

        Not for the main thread: there Ctrl-C may come when a process runs and is not known yet.

        Raises:
            ToolchainError: it failed, with the first lines of what it said; or it was stopped.
        """
        # What the compiler says must be the same everywhere, and so must the headers it finds.
        env = {k: v for k, v in os.environ.items() if k not in ("CPATH", "C_INCLUDE_PATH")}
        env["LC_ALL"] = "C"
        with self._lock:
            if self._stopped:
                raise ToolchainError("the build was stopped")
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # so that stop() reaches the compiler's own children
                )
            except OSError as error:
                raise ToolchainError(f"cannot start {command[0]}: {error.strerror}") from error
            self._running.add(process)
        out, err = process.communicate()
        with self._lock:
            self._running.discard(process)
        if process.returncode:
            said = (err or out).strip().splitlines()
            where = f"the C is in {self.kept}"
            if not self.kept:
                where = f"name a folder with {argument('emit_c')} to see the C"
            shown = "\n".join(said[:12]) or f"exit status {process.returncode}, no message"
            raise ToolchainError(f"the C compiler failed ({where}): {shlex.join(command)}\n{shown}")

    def stop(self) -> None:
        """Kill what is running and start nothing more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill(process)


def stop_all() -> None:
    """Stop every Runner of this process, for an exit that does not wait for its threads."""
    for runner in list(_runners):
        runner.stop()


_runners: weakref.WeakSet[Runner] = weakref.WeakSet()


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a command, and what it has started, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
