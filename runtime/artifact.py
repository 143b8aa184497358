"""Reading an artifact and making sure that it is whole, before any of its code is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, Union

from sparsec import targets
from sparsec.arguments import argument
from sparsec.errors import ArtifactError, HardwareError
from sparsec.interface import ELEMENTS, FORMAT, MANIFEST, PADDING, SCHEMA
from sparsec.paths import user_path
from sparsec.runtime.cpu import CpuInfo, detect

_MAX_MANIFEST = 64 << 20
_MAX_RANK = 8
T = TypeVar("T")
SpecDim = Union[int, str]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; `shape` holds extents, "batch" and "sequence"."""

    name: str
    dtype: str
    shape: tuple[SpecDim, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class ModelInfo:
    """The ONNX file that was compiled."""

    name: str
    sha256: str
    dialect: str


@dataclass(frozen=True)
class TargetInfo:
    """What the code was compiled for.

    Attributes:
        features: those it needs of the CPU.
        tuned_for: the microarchitecture whose costs it was made for; "" in older artifacts.
        precision: of products of floats in layers and attention: "fp32" or "bf16".
    """

    name: str
    arch: str
    features: tuple[str, ...]
    tuned_for: str
    precision: str = "fp32"


@dataclass(frozen=True)
class ToolchainInfo:
    """The C compiler and its flags."""

    compiler: str
    version: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class KernelInfo:
    """One kernel call of a bucket.

    Attributes:
        name, kernel: its name in the C, and the kernel's.
        source: the ONNX nodes it computes.
        detail: one line for people.
        shape: input x output channels, heads x channels of a head, or channels; may be empty.
        sparsity: share of a weight matrix's 1x4 blocks (8-bit) or weights (float) that is zero.
        rows: of a sample; the kernel takes them in blocks of 16 of the whole batch.
        work_block, work_key: multiply-adds of 16 lanes that the non-zero weights need for each
            block of 16 rows, and attention for 16 queries and one key.
        work_sample: multiply-adds of 16 lanes of a row-major kernel for each sample.
    """

    name: str
    kernel: str
    source: str
    detail: str
    shape: str
    sparsity: float
    rows: int
    work_block: int
    work_key: int
    work_sample: int


@dataclass(frozen=True)
class BucketInfo:
    """One library.

    Attributes:
        length: its sequence length, 0 for a model without a sequence axis.
        needs: the libraries of constants that it needs.
    """

    length: int
    file: str
    needs: tuple[str, ...]
    kernels: tuple[KernelInfo, ...]


@dataclass(frozen=True)
class LayerInfo:
    """A weight matrix [n, k] and the share of its weights and of its 4-blocks that is zero.

    Attributes:
        microseconds: what the forms take that the kernel was chosen among, by the cost model or
            measured; empty in artifacts of before.
    """

    name: str
    op: str
    n: int
    k: int
    sparsity: float
    block4_sparsity: float
    kernel: str
    microseconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and sha256 (lower-case hex) of a file of the artifact."""

    size: int
    sha256: str


@dataclass(frozen=True)
class PaddingInfo:
    """What becomes of a sequence that is shorter than its bucket, filled up with zeros.

    Attributes:
        kind: "masked": its results are right; "lengths": they are where the code is given the
            lengths; "exact": they are not, sequences must have the length of a bucket.
        reason: for the last two, what in the model makes it so; else "".
    """

    kind: str
    reason: str


@dataclass(frozen=True)
class VariantInfo:
    """What an artifact has for one target; `buckets` are sorted by length."""

    target: TargetInfo
    toolchain: ToolchainInfo
    supports_lengths: bool
    buckets: tuple[BucketInfo, ...]
    layers: tuple[LayerInfo, ...]


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`; see docs/architecture.md.  `buckets` are sorted by length.

    Attributes:
        variants: what there is for each target, fastest first; one of them is spread over the other
            attributes: that of an Engine which runs it, else the last, which most machines can run.
    """

    schema: int
    abi: int
    sparsec_version: str
    model: ModelInfo
    target: TargetInfo
    toolchain: ToolchainInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    mask_input: str | None
    supports_lengths: bool
    padding: PaddingInfo
    buckets: tuple[BucketInfo, ...]
    layers: tuple[LayerInfo, ...]
    files: Mapping[str, FileInfo]
    variants: tuple[VariantInfo, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only view of a dict cannot be pickled.
        return _manifest, ({**vars(self), "files": dict(self.files)},)


def _manifest(fields: dict[str, Any]) -> Manifest:
    return Manifest(**{**fields, "files": MappingProxyType(fields["files"])})


@dataclass(frozen=True)
class Artifact:
    """A compiled model on disk: the folder and its manifest."""

    path: Path
    manifest: Manifest

    @staticmethod
    def load(path: str | os.PathLike[str], verify: bool = True) -> Artifact:
        """Read an artifact and check it; none of its code is loaded.

        Whether this machine can run it is another question: :meth:`check_hardware`.

        Args:
            path: the folder.
            verify: also compare the sha256 of every file (once per process, unless a file changes).

        Raises:
            ArtifactError: what is missing, damaged or too new, and where.
        """
        folder = user_path(path)
        artifact = Artifact(folder, parse_manifest(read_manifest(folder), str(folder / MANIFEST)))
        artifact.check_files(verify)
        return artifact

    def check_files(self, verify: bool = True) -> None:
        """Check that all files are there and, with `verify`, that they are those of the manifest.

        Raises:
            ArtifactError: what is missing or damaged.
        """
        root = Path(os.path.realpath(self.path))
        for name, info in self.manifest.files.items():
            _check_file(root, self.path / name, info, verify)

    def check_hardware(self, cpu: CpuInfo | None = None) -> None:
        """Make sure that a CPU (this one, unless given) has what the code of a target needs.

        Raises:
            HardwareError: naming the missing features and the targets that would run.
        """
        self._runnable(cpu or detect())

    def best(self, cpu: CpuInfo | None = None) -> Artifact:
        """The artifact with the fastest of its targets that a CPU (this one, unless given) and this
        process can run as the one that the manifest is about.

        Raises:
            HardwareError: there is none.
        """
        refused: HardwareError | None = None
        for variant in self._runnable(cpu or detect()):
            try:
                targets.prepare(variant.target.name)
            except HardwareError as error:
                refused = refused or error
                continue
            return Artifact(self.path, replace(self.manifest, **vars(variant)))
        assert refused is not None
        raise refused

    def _runnable(self, cpu: CpuInfo) -> list[VariantInfo]:
        """What there is for targets that a CPU can run, fastest first: at least one."""
        variants = self.manifest.variants
        arches = sorted({variant.target.arch for variant in variants})
        if cpu.arch not in arches:
            raise HardwareError(
                f"{self.path} was compiled for {', '.join(arches)}, this machine is {cpu.arch}; "
                f"compile the model again here"
            )
        found = [v for v in variants if v.target.arch == cpu.arch and not _missing(v, cpu)]
        if not found:
            names = ", ".join(variant.target.name for variant in variants)
            lacks = "; ".join(", ".join(_missing(variant, cpu)) for variant in variants[-1:])
            raise HardwareError(
                f"{self.path} was compiled for target {names}; this CPU"
                f"{f' ({cpu.brand})' if cpu.brand else ''} lacks {lacks}. "
                f"Targets that run here: {', '.join(cpu.targets())}; compile the model again "
                f"with {argument('target', cpu.targets()[0])}"
            )
        return found

    @property
    def buckets(self) -> tuple[int, ...]:
        """Sequence lengths, ascending."""
        return tuple(bucket.length for bucket in self.manifest.buckets)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs, in order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs, in order."""
        return self.manifest.outputs

    @property
    def target(self) -> TargetInfo:
        """What the code was compiled for."""
        return self.manifest.target

    def library(self, length: int) -> Path:
        """Where the library of a bucket is, symbolic links resolved."""
        (name,) = (b.file for b in self.manifest.buckets if b.length == length)
        return Path(os.path.realpath(self.path / name))


def _missing(variant: VariantInfo, cpu: CpuInfo) -> list[str]:
    """CPU features that code needs and a CPU lacks."""
    return [name for name in variant.target.features if name not in cpu.features]


# ---- files ---------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> bytes:
    """The bytes of an artifact's manifest.

    Raises:
        ArtifactError: the folder has none, or it cannot be read.
    """
    manifest = folder / MANIFEST
    try:
        if not folder.exists():
            raise ArtifactError(f"{folder} does not exist")
        if not folder.is_dir():
            raise ArtifactError(f"{folder} is not an artifact: an artifact is a folder")
        size = manifest.stat().st_size
        if size > _MAX_MANIFEST:
            raise ArtifactError(f"{manifest} is damaged: {size} bytes is no plausible size")
        return manifest.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} cannot be read: {error}") from error


_Identity = tuple[int, int, int, int, int]
_verified: dict[Path, tuple[_Identity, str]] = {}


def _check_file(root: Path, path: Path, info: FileInfo, verify: bool) -> None:
    """Check that a file is inside `root`, regular, and the one that the manifest describes."""
    real = Path(os.path.realpath(path))
    try:
        status = real.stat()
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if real.parent != root:
        raise ArtifactError(f"{path} is a link that leads out of the artifact, to {real}")
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{path} is not a regular file")
    if status.st_size != info.size:
        raise damaged(path, info, status.st_size)
    if not verify:
        return
    known = _verified.get(real)
    digest = known[1] if known and known[0] == _identity(status) else _sha256(real)
    if digest != info.sha256:
        raise damaged(path, info, status.st_size, digest)
    remember(path, status, digest)


def remember(path: Path, status: os.stat_result, digest: str) -> None:
    """Do not read a file again for its sha256 until its `status` changes."""
    _verified[Path(os.path.realpath(path))] = (_identity(status), digest)


def _identity(status: os.stat_result) -> _Identity:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def damaged(path: Path, info: FileInfo, size: int, digest: str = "") -> ArtifactError:
    """The error for a file of another size or sha256 than the manifest says."""
    if size != info.size:
        what = f"it has {size} bytes, the manifest says {info.size}"
    else:
        what = f"its sha256 is {digest}, the manifest says {info.sha256}"
    return ArtifactError(f"{path} is damaged: {what}; copy or compile the artifact again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


# ---- the manifest --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    """A JSON value and how to name it in an error."""

    value: Any
    file: str
    where: str

    def fail(self, expected: str) -> ArtifactError:
        text = json.dumps(self.value)
        shown = text if len(text) <= 60 else text[:57] + "..."
        return ArtifactError(
            f"{self.file} is damaged: {self.where or 'the document'} must be {expected}, "
            f"not {shown}"
        )

    def __getitem__(self, key: str) -> _Field:
        """A member that must be there."""
        if not isinstance(self.value, dict):
            raise self.fail("an object")
        where = f"{self.where}.{key}" if self.where else key
        if key not in self.value:
            raise ArtifactError(f"{self.file} is damaged: {where} is missing")
        return _Field(self.value[key], self.file, where)

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.fail("a string")
        return self.value

    def integer(self, least: int) -> int:
        if type(self.value) is not int or not least <= self.value < 1 << 62:
            raise self.fail(f"an integer of at least {least}")
        return self.value

    def share(self) -> float:
        if type(self.value) not in (int, float) or not 0 <= self.value <= 1:
            raise self.fail("a number from 0 to 1")
        return float(self.value)

    def numbers(self, key: str) -> dict[str, float]:
        """A member with numbers by name; empty where it is not there."""
        found = self[key] if key in self.value else _Field({}, self.file, self.where)
        if not isinstance(found.value, dict) or any(
            type(number) not in (int, float) for number in found.value.values()
        ):
            raise found.fail("an object of numbers")
        return {name: float(number) for name, number in found.value.items()}

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.fail("true or false")
        return self.value

    def sha256(self) -> str:
        text = self.value
        if not isinstance(text, str) or len(text) != 64 or set(text) - set("0123456789abcdef"):
            raise self.fail("a sha256 in hexadecimal")
        return text

    def array(self, read: Callable[[_Field], T]) -> tuple[T, ...]:
        if not isinstance(self.value, list):
            raise self.fail("an array")
        return tuple(read(self.element(i)) for i in range(len(self.value)))

    def element(self, index: int) -> _Field:
        """One of an array's."""
        return _Field(self.value[index], self.file, f"{self.where}[{index}]")

    def members(self) -> dict[str, _Field]:
        if not isinstance(self.value, dict):
            raise self.fail("an object")
        return {key: self[key] for key in self.value}


def _file_name(field: _Field) -> str:
    """A plain name: it can only mean a file inside the folder."""
    name = field.text()
    if name in ("", ".", "..", MANIFEST) or any(c in "/\\:" or ord(c) < 32 for c in name):
        raise field.fail("a plain file name inside the artifact")
    return name


def _tensor(field: _Field) -> TensorSpec:
    def extent(dim: _Field) -> SpecDim:
        if isinstance(dim.value, str) and dim.value in ("batch", "sequence"):
            return dim.value
        if isinstance(dim.value, str):
            raise dim.fail('"batch", "sequence" or an integer')
        return dim.integer(0)

    dtype = field["dtype"].text()
    if dtype not in ELEMENTS:
        raise field["dtype"].fail(f"one of {', '.join(sorted(ELEMENTS))}")
    shape = field["shape"].array(extent)
    if len(shape) > _MAX_RANK:
        raise field["shape"].fail(f"of rank {_MAX_RANK} at most")
    return TensorSpec(field["name"].text(), dtype, shape)


def _bucket(field: _Field) -> BucketInfo:
    def kernel(k: _Field) -> KernelInfo:
        return KernelInfo(
            name=k["name"].text(),
            kernel=k["kernel"].text(),
            source=k["source"].text(),
            detail=k["detail"].text(),
            shape=k["shape"].text(),
            sparsity=k["sparsity"].share(),
            rows=k["rows"].integer(0),
            work_block=k["work_block"].integer(0),
            work_key=k["work_key"].integer(0),
            work_sample=k["work_sample"].integer(0),
        )

    return BucketInfo(
        length=field["length"].integer(0),
        file=_file_name(field["file"]),
        needs=field["needs"].array(_file_name),
        kernels=field["kernels"].array(kernel),
    )


def _layer(field: _Field) -> LayerInfo:
    return LayerInfo(
        name=field["name"].text(),
        op=field["op"].text(),
        n=field["n"].integer(0),
        k=field["k"].integer(0),
        sparsity=field["sparsity"].share(),
        block4_sparsity=field["block4_sparsity"].share(),
        kernel=field["kernel"].text(),
        microseconds=field.numbers("microseconds"),
    )


def _padding(field: _Field) -> PaddingInfo:
    kind = field["kind"].text()
    if kind not in PADDING:
        raise field["kind"].fail(f"one of {', '.join(PADDING)}")
    return PaddingInfo(kind, field["reason"].text())


def _versions(document: _Field) -> tuple[int, int]:
    """Schema and ABI, once they are known to be ours."""
    if document["format"].value != FORMAT:
        raise document["format"].fail(f'"{FORMAT}"')
    from sparsec.runtime._engine import ABI_VERSION  # which imports this module

    schema, abi = document["schema"].integer(1), document["abi"].integer(1)
    maker = document["sparsec_version"].text()
    for what, found, ours in (("schema", schema, SCHEMA), ("ABI", abi, ABI_VERSION)):
        if found > ours:
            raise ArtifactError(
                f"{document.file} has {what} {found}, made by sparsec {maker}; this sparsec reads "
                f"{what} {ours}: upgrade sparsec"
            )
        if found < ours:
            raise ArtifactError(
                f"{document.file} has {what} {found}, made by sparsec {maker}; this sparsec reads "
                f"{what} {ours}: compile the model again"
            )
    return schema, abi


def parse_manifest(data: bytes, name: str = MANIFEST) -> Manifest:
    """Parse and check a manifest, every field of it.

    Args:
        data: the bytes of the file.
        name: what error messages call it.

    Raises:
        ArtifactError: it is not JSON, of another schema or ABI, or a field is wrong.
    """
    try:
        document = _Field(json.loads(data), name, "")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is damaged: {error}") from error
    schema, abi = _versions(document)
    model = document["model"]
    inputs, outputs = (document[key].array(_tensor) for key in ("inputs", "outputs"))
    files = {
        _file_name(_Field(key, name, "the name of a file in files")): FileInfo(
            info["size"].integer(0), info["sha256"].sha256()
        )
        for key, info in document["files"].members().items()
    }
    mine = _variant(document)
    others = document["variants"].array(_variant) if "variants" in document.members() else ()
    mask = document["mask_input"].value
    manifest = Manifest(
        schema=schema,
        abi=abi,
        sparsec_version=document["sparsec_version"].text(),
        model=ModelInfo(model["name"].text(), model["sha256"].sha256(), model["dialect"].text()),
        inputs=inputs,
        outputs=outputs,
        mask_input=None if mask is None else document["mask_input"].text(),
        padding=_padding(document["padding"]),
        files=MappingProxyType(files),
        variants=(*others, mine),
        **vars(mine),
    )
    _check_consistency(manifest, document)
    for i, variant in enumerate(others):
        _check_variant(manifest, variant, document["variants"].element(i), document["files"])
    _check_variant(manifest, mine, document, document["files"])
    return manifest


def _variant(field: _Field) -> VariantInfo:
    target, toolchain = field["target"], field["toolchain"]
    return VariantInfo(
        target=TargetInfo(
            target["name"].text(),
            target["arch"].text(),
            target["features"].array(_Field.text),
            target["tuned_for"].text() if "tuned_for" in target.members() else "",
            # Artifacts of before do not say.
            target["precision"].text() if "precision" in target.members() else "fp32",
        ),
        toolchain=ToolchainInfo(
            toolchain["compiler"].text(),
            toolchain["version"].text(),
            toolchain["flags"].array(_Field.text),
        ),
        supports_lengths=field["supports_lengths"].boolean(),
        buckets=tuple(sorted(field["buckets"].array(_bucket), key=lambda b: b.length)),
        layers=field["layers"].array(_layer),
    )


def _check_consistency(manifest: Manifest, document: _Field) -> None:
    """Checks across fields."""
    if len({spec.name for spec in manifest.inputs}) != len(manifest.inputs):
        raise document["inputs"].fail("a list without repeated names")
    # A model may give the same output twice.
    if len({spec.name for spec in manifest.outputs}) != len(set(manifest.outputs)):
        raise document["outputs"].fail("a list in which a name means one thing")
    names = [spec.name for spec in manifest.inputs]
    if manifest.mask_input is not None and manifest.mask_input not in names:
        raise document["mask_input"].fail(f"null or one of {', '.join(names)}")
    names = [variant.target.name for variant in manifest.variants]
    if len(set(names)) < len(names):
        raise document["variants"].fail("a list of different targets")


def _check_variant(
    manifest: Manifest, variant: VariantInfo, document: _Field, files: _Field
) -> None:
    """Checks of what there is for a target."""
    if manifest.padding.kind == "lengths" and not variant.supports_lengths:
        raise document["supports_lengths"].fail("true where padding is kept out by lengths")
    lengths = [bucket.length for bucket in variant.buckets]
    if not lengths:
        raise document["buckets"].fail("a list of at least one bucket")
    if len(set(lengths)) != len(lengths):
        raise document["buckets"].fail("a list without repeated lengths")
    if lengths != [bucket.length for bucket in manifest.buckets]:
        raise document["buckets"].fail("a list of the lengths that every target has")
    sequence = any("sequence" in s.shape for s in (*manifest.inputs, *manifest.outputs))
    if sequence and 0 in lengths:
        raise document["buckets"].fail("a list of lengths above 0 (the model has a sequence axis)")
    for name in {name for b in variant.buckets for name in (b.file, *b.needs)}:
        if name not in manifest.files:
            raise files.fail(f"a list that has {name}, which a bucket needs")
