"""Where answers go: parts that are there whole or not at all, and what becomes of them.

An output is a folder of parts, or one file that is joined from them at the end.  What is done is
noted part by part, so that the same command goes on after any end of the process.
"""

from __future__ import annotations

import fcntl
import json
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsec.arguments import argument
from sparsec.errors import InputError
from sparsec.serving.bulk.encoding import FORMATS, Done, Encoded, Schema
from sparsec.serving.bulk.files import Location, suffix_kind
from sparsec.serving.bulk.joining import Joined
from sparsec.serving.bulk.storage import Folder, Whole

# Of a folder of parts, the folder with what is done; readers of data sets skip such names.
_STATE = "_run"

_SETTINGS = "settings.json"
_DONE = ".done"
_LOCK = "lock"
_JOINED = "joined.tmp"


def describe(output: str, kind: str | None, of_input: str) -> tuple[Location, str, bool]:
    """(where an output is, its format, whether it is one file).

    A name that ends as files of a format do is a file, unless it is that of a folder.

    Raises:
        InputError: files of that format are not written.
    """
    place = Location.of(output)
    by_name, _ = suffix_kind(place.path)
    single = by_name is not None and not output.endswith("/") and not place.fs.isdir(place.path)
    chosen = kind or (by_name if single else None) or ("jsonl" if of_input == "text" else of_input)
    if chosen not in FORMATS:
        raise InputError(
            f"the output's format must be one of {', '.join(FORMATS)}, not {chosen}: end its name "
            f"in {', '.join(f'.{kind}' for kind in FORMATS)}"
        )
    return place, chosen, single


class Output:
    """The output of a run, and what earlier runs of the same command have done of it.

    Args:
        place: where it is.
        schema: its form.
        settings: JSON values: all that the rows of the output depend on.
        bad: the file for bad rows; None: there are none.
        force: replace what is there.

    Raises:
        InputError: it is there already, or is the unfinished one of another command, or another
            process writes it.
    """

    def __init__(
        self,
        place: Location,
        schema: Schema,
        settings: Mapping[str, Any],
        bad: Location | None,
        force: bool,
    ) -> None:
        self.place, self.schema, self.single, self.bad = place, schema, schema.single, bad
        folder, name = posixpath.split(place.path.rstrip("/"))
        state = f"{folder}/.{name}.run" if self.single else f"{place.path.rstrip('/')}/{_STATE}"
        self._state = Folder(place.beside(state))
        self._parts = self._state if self.single else Folder(place)
        self._lock: Any = None
        self._joined: Joined | None = None
        self._next = 0
        self._there: set[int] = set()
        try:
            self._begin(json.dumps(settings, sort_keys=True), force)
        except OSError as error:
            self.close()
            raise InputError(
                f"cannot write {place.name}: {error.strerror or error}; choose another output"
            ) from error
        except BaseException:
            self.close()
            raise

    def _begin(self, settings: str, force: bool) -> None:
        known = self._state.read(_SETTINGS)
        ours = known is not None and known.decode() == settings
        if known is not None:
            self._take_lock()
        if not ours:
            self._check_free(known is not None, force)
        if self._lock is None:
            self._take_lock()
        if known is not None and not ours:
            if not self.single:
                self._remove_parts()
            self._remove_state()
        if not ours:
            self._state.write(_SETTINGS, settings.encode())

    def _check_free(self, unfinished: bool, force: bool) -> None:
        if force:
            return
        if unfinished:
            raise InputError(
                f"{self._state.place.name} has the work of another command, or of one on other "
                f"inputs: repeat that to go on with it, or give {argument('force', True)} to "
                f"replace it"
            )
        there = self.place.fs.exists(self.place.path)
        if there and (self.single or self._parts.names() - {_STATE}):
            raise InputError(
                f"{self.place.name} exists: replace it with {argument('force', True)}, or choose "
                f"another"
            )
        if self.bad is not None and self.bad.fs.exists(self.bad.path):
            raise InputError(f"{self.bad.name} exists: replace it with {argument('force', True)}")

    def _take_lock(self) -> None:
        if not self.place.local:
            return
        folder = Path(self._state.place.path)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing {self.place.name}") from None

    def _remove_parts(self) -> None:
        for name in self._parts.names():
            if name.startswith(("part-", ".part-")):
                self.place.fs.rm(self._parts.path(name))

    def _remove_state(self) -> None:
        for name in self._state.names() - {_LOCK}:
            self.place.fs.rm(self._state.path(name))

    def part_name(self, number: int) -> str:
        return f"part-{number:05d}.{self.schema.part_kind}"

    def done(self) -> dict[int, Done]:
        """The parts that are there, by number.

        What has become of each is in the name of a file, so that a list of names says all.
        """
        there = self._parts.names()
        found = {}
        for name in self._state.names():
            stem, suffix = posixpath.splitext(name)
            if suffix == _DONE:
                number, *counts = map(int, stem.split("-"))
                if self.part_name(number) in there:
                    found[number] = Done(*counts)
        self._there = set(found)
        return found

    def store(self, number: int, part: Encoded) -> None:
        """Keep a part; it is done when this returns."""
        self._parts.write(self.part_name(number), part.data)
        if part.bad:
            self._state.write(f"{number:05d}.bad", part.bad)
        done = part.done
        self._state.write(f"{number:05d}-{done.rows}-{done.bad}-{done.cut}{_DONE}", b"")
        self._there.add(number)
        if self.single and self.place.local:
            self._join(number, part.data)

    def finish(self, done: Mapping[int, Done]) -> None:
        """Make the output of its parts, which are all there, and the file of bad rows."""
        if self.bad is not None:
            with Whole(self.bad, self.bad.path) as stream:
                for number in sorted(number for number in done if done[number].bad):
                    stream.write(self._state.read(f"{number:05d}.bad") or b"")
        if not self.single:
            return
        joined = self._join()
        self._joined = None
        joined.finish()
        self._state.remove()

    def _join(self, number: int = -1, data: bytes = b"") -> Joined:
        """Join the parts that are there behind those that are joined.

        Args:
            number, data: a part that need not be read.
        """
        if self._joined is None:
            self._joined = Joined(self.place, self.schema, self._state.path(_JOINED))
        while self._next in self._there:
            known = data if self._next == number else None
            self._joined.add(known or self._parts.read(self.part_name(self._next)) or b"")
            self._next += 1
        return self._joined

    def close(self) -> None:
        """Let others write it."""
        if self._joined is not None:
            self._joined.drop()
        self._joined = None
        if self._lock is not None:
            self._lock.close()
        self._lock = None
