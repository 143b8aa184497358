# cython: language_level=3
"""Puts the libraries of artifacts into the process, from verified copies in memory.

The C library knows a shared library by its path, its inode and its soname, and hands out what it has
under any of them: a recompiled artifact would run the old code while an Engine on the old one is open.
And what it maps from a file changes when the file is overwritten.  Hence a library is copied into
memory, its sha256 is that of the copy, and the copy is loaded under a name that no other one has.
Copies are shared: in a process, libraries with the same bytes are loaded once, and processes that are
told of a common folder (:func:`share`) lend each other the constants.

docs/adr/0015-libraries-from-memory.md has the reasons.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import mmap
import os
import tempfile
import threading
import weakref
from pathlib import Path

from sparsec.errors import ArtifactError
from sparsec.runtime.artifact import damaged, remember

from libc.stdint cimport uintptr_t


cdef extern from "<dlfcn.h>" nogil:
    void *dlopen(const char *, int)
    int dlclose(void *)
    char *dlerror()
    int RTLD_NOW, RTLD_LOCAL


cdef extern from *:
    """
    #include <errno.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* memfd_create by its number: Python and the C library that it was built with may lack it. */
    static int memory_file(const char *name)
    {
    #ifdef SYS_memfd_create
        const unsigned cloexec = 1, sealable = 2, executable = 16;
        int fd = (int)syscall(SYS_memfd_create, name, cloexec | sealable | executable);
        if (fd < 0 && errno == EINVAL) /* before Linux 6.3, all are executable */
            fd = (int)syscall(SYS_memfd_create, name, cloexec | sealable);
        return fd;
    #else
        (void)name;
        return -1;
    #endif
    }
    """
    int memory_file(const char *) nogil


cdef enum:
    CHUNK = 1 << 20
    F_ADD_SEALS = 1033
    F_GET_SEALS = 1034
    ALL_SEALS = 15  # no more seals, no shrinking, growing, writing


# Guards what follows, and loading itself; an RLock because collecting garbage may unload.
_lock = threading.RLock()
# By the sha256 of a library and of those it needs, as long as somebody uses it.
_loaded = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
# Where processes tell each other what they can lend.
_offers = None

# A child of a fork never finds the lock held by a thread that it does not have.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


cdef class Library:
    """A loaded library.  It is unloaded with the last reference to this, and so are those it needs.

    Attributes:
        handle: what dlopen gave, for dlsym.
        name: what dlopen knows it by.
    """

    cdef object __weakref__
    cdef void *_handle
    cdef readonly str name
    cdef tuple _needs
    cdef int _fd  # the copy, where libraries that are loaded later may need it
    cdef tuple _inode

    def __cinit__(self):
        self._fd = -1

    def __dealloc__(self):
        if self._handle != NULL:
            dlclose(self._handle)
        # A process that becomes a daemon closes all files; then the number is somebody else's.
        if self._fd >= 0 and _inode(self._fd) == self._inode:
            os.close(self._fd)

    @property
    def handle(self):
        return <uintptr_t>self._handle


def share(folder):
    """Borrow constants from other processes of the same user, and lend them what this one has.

    Args:
        folder: an existing one, private to the user; all processes that name it take part.
    """
    global _offers
    _offers = Path(folder)


def load(artifact, length):
    """The library of a bucket, loaded now unless the process has it.

    Args:
        artifact: an :class:`~sparsec.runtime.artifact.Artifact`.
        length: the bucket's.

    Raises:
        ArtifactError: a file is not what the manifest says, or cannot be loaded.
    """
    (bucket,) = (bucket for bucket in artifact.manifest.buckets if bucket.length == length)
    with _lock:
        needs = {name: _library(artifact, name, None) for name in bucket.needs}
        return _library(artifact, bucket.file, needs)


cdef Library _library(artifact, str name, dict needs):
    """A library of an artifact; `needs` are those that it may need by name, None for one of those."""
    files = artifact.manifest.files
    key = (files[name].sha256, *[(need, files[need].sha256) for need in needs or ()])
    cdef Library library = _loaded.get(key)
    if library is None:
        if needs is None and _offers is not None:
            library = _lent(artifact.path / name, files[name])
        else:
            library = _copied(artifact.path / name, files[name], needs)
        _loaded[key] = library
    return library


cdef Library _lent(path, info):
    """Borrow a library from another process, or copy it; then lend it on."""
    cdef Library library
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context((_offers / f"{info.sha256}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # of processes that start together, one copies
        except OSError:
            return _copied(path, info, None)  # the folder is gone
        library = _borrowed(info) or _copied(path, info, None)
        offer = _offers / f"{info.sha256}.by-{os.getpid()}"
        with contextlib.suppress(OSError):
            offer.write_text(f"/proc/{os.getpid()}/fd/{library._fd}", encoding="utf-8")
        return library


cdef Library _borrowed(info):
    for offer in _offers.glob(f"{info.sha256}.by-*"):
        try:
            with open(offer.read_text(encoding="utf-8"), "rb", buffering=0) as copy:
                # Seals keep its bytes, the sha256 says which they are: no trust is needed.
                if fcntl.fcntl(copy, F_GET_SEALS) == ALL_SEALS and _is(copy, info):
                    return _opened(copy, None)
        except (OSError, _Refused):
            pass  # that process has unloaded it, or is gone
    return None


cdef bint _is(copy, info):
    digest = hashlib.sha256()
    if os.fstat(copy.fileno()).st_size != info.size:
        return False
    while chunk := copy.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest() == info.sha256


cdef Library _copied(path, info, dict needs):
    """Load a copy in memory; in a temporary file where the system runs no code from memory."""
    problems = []
    for make in (_in_memory, _in_a_file):
        try:
            copy = make(path.name)
        except OSError as error:
            problems.append(error.strerror)
            continue
        try:
            _fill(copy.fileno(), path, info)
            if needs:
                _redirect(copy.fileno(), path, needs)
            return _opened(copy, needs)
        except _Refused as refusal:
            problems.append(str(refusal))
        finally:
            copy.close()
    raise ArtifactError(f"{path} cannot be loaded: {'; '.join(problems)}")


def _in_memory(name):
    cdef bytes label = os.fsencode(name)
    cdef int fd = memory_file(label)
    if fd < 0:
        raise OSError(errno.ENOSYS, "no files in memory")
    return open(fd, "r+b", buffering=0)


def _in_a_file(name):
    return tempfile.TemporaryFile(buffering=0)


cdef _fill(int fd, path, info):
    """Copy a file, and make sure that the copy is what the manifest says."""
    digest = hashlib.sha256()
    size = 0
    try:
        # Not to wait for the writer of a pipe.
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(source)
            while size <= info.size and (chunk := os.read(source, CHUNK)):
                digest.update(chunk)
                size += len(chunk)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(fd, rest):]
        finally:
            os.close(source)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be copied into memory: {error.strerror}") from error
    if size != info.size or digest.hexdigest() != info.sha256:
        raise damaged(path, info, size, digest.hexdigest())
    remember(path, status, info.sha256)


cdef _redirect(int fd, path, dict needs):
    """Make a copy need the copies of other libraries, not whatever else has their names."""
    cdef Library library
    with mmap.mmap(fd, 0) as image:
        for name, library in needs.items():
            old, new = os.fsencode(name) + b"\0", os.fsencode(library.name) + b"\0"
            while (at := image.find(old)) >= 0:
                if len(new) > len(old):
                    raise ArtifactError(f"{path} cannot be loaded: the name {name} is too short")
                image[at:at + len(old)] = new.ljust(len(old), b"\0")


cdef Library _opened(copy, dict needs):
    """dlopen a copy; raises _Refused."""
    cdef Library library = Library.__new__(Library)
    cdef bytes name
    cdef const char *c_name
    cdef void *handle
    cdef char *problem
    try:
        fcntl.fcntl(copy, F_ADD_SEALS, ALL_SEALS)
    except OSError:
        pass  # a file on a disk
    if needs is None:
        # Short, for it takes the place of a name; nobody else's as long as the file is open.
        taken = {other.name for other in list(_loaded.values())}
        fd = copy.fileno()
        while library._fd < 0 or library.name in taken:
            fd = fcntl.fcntl(copy, fcntl.F_DUPFD_CLOEXEC, fd + 1)
            if library._fd >= 0:
                os.close(library._fd)
            library._fd = fd
            library.name = f"/proc/self/fd/{fd}"
        library._inode = _inode(fd)
    else:
        # A number that never comes again, written in slashes and dots that mean nothing.
        unique = f"{next(_numbers):b}".replace("0", "/").replace("1", "/.")
        library.name = f"/proc/self/fd{unique}/{copy.fileno()}"
        library._needs = tuple(needs.values())
    name = os.fsencode(library.name)
    c_name = name
    with nogil:
        handle = dlopen(c_name, RTLD_NOW | RTLD_LOCAL)
    if handle == NULL:
        problem = dlerror()
        text = problem.decode(errors="replace") if problem != NULL else "unknown reason"
        raise _Refused(text.removeprefix(f"{library.name}: "))
    library._handle = handle
    return library


def _inode(fd):
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class _Refused(Exception):
    """The C library does not load it; says why."""
