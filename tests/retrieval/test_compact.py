from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mca_perception.deploy.graph_files import save_graph
from mca_perception.errors import BundleError
from mca_perception.retrieval import compact
from mca_perception.retrieval.compact import compact_bundle, compact_graph
from mca_perception.retrieval.encoder import DualEncoder
from tests.support.retrieval import write_colour_encoder

ROWS, WIDE = 90, 64


def write_graph(path: Path, dtype: type = np.float32) -> None:
    """Rows of a table times a matrix, both with channels of very different sizes, plus a short vector.

    All are float32, rounded to ``dtype``.
    """
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ROWS, WIDE)) * np.logspace(-3, 3, ROWS)[:, None]
    matrix = rng.normal(size=(WIDE, WIDE)) * np.logspace(-3, 3, WIDE)
    matrix[:, 5] = 0
    constants = {"table": table, "matrix": matrix, "offset": rng.normal(size=WIDE)}
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["rows"]),
        onnx.helper.make_node("MatMul", ["rows", "matrix"], ["product"]),
        onnx.helper.make_node("Add", ["product", "offset"], ["out"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["N"])],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["N", WIDE])],
        [onnx.numpy_helper.from_array(v.astype(dtype).astype(np.float32), k) for k, v in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": np.arange(ROWS)})[0]


def test_weights_become_int8_with_a_scale_per_channel(tmp_path: Path) -> None:
    write_graph(tmp_path / "a.onnx")
    compact_graph(tmp_path / "a.onnx", tmp_path / "b.onnx")
    onnx.checker.check_model(str(tmp_path / "b.onnx"), full_check=True)
    types = {t.name: t.data_type for t in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert types["table_codes"] == types["matrix_codes"] == onnx.TensorProto.INT8
    assert types["offset"] == onnx.TensorProto.FLOAT
    assert (tmp_path / "b.onnx").stat().st_size < 0.4 * (tmp_path / "a.onnx").stat().st_size
    before, after = run(tmp_path / "a.onnx"), run(tmp_path / "b.onnx")
    # Every row and column has its own size: one scale for all would lose the small ones.
    size = np.linalg.norm(before, axis=1)
    assert (np.linalg.norm(before - after, axis=1) / size).max() < 0.05
    np.testing.assert_array_equal(before[:, 5], after[:, 5])


def test_weights_stored_as_float16_become_the_same_int8(tmp_path: Path) -> None:
    write_graph(tmp_path / "a.onnx", np.float16)
    save_graph(onnx.load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").stat().st_size < 0.6 * (tmp_path / "a.onnx").stat().st_size
    for name in ("a", "b"):
        compact_graph(tmp_path / f"{name}.onnx", tmp_path / f"{name}8.onnx")
    assert (tmp_path / "a8.onnx").read_bytes() == (tmp_path / "b8.onnx").read_bytes()


def test_a_bundle_keeps_vocabulary_and_settings_and_leaves_weights_out(tmp_path: Path) -> None:
    bundle = write_colour_encoder(tmp_path / "colours")
    small = compact_bundle(bundle, tmp_path / "small", version="2")
    assert (small.manifest.version, small.manifest.retrieval) == ("2", bundle.manifest.retrieval)
    assert set(small.manifest.files) == {"README.md", "image.onnx", "text.onnx", "tokenizer.spm"}
    assert small.manifest.training["int8_weights_cosine"].keys() == {"images", "texts"}
    assert (
        DualEncoder(small).encode_texts(["red"]) @ DualEncoder(bundle).encode_texts(["red"]).T
    ).item() > 0.99


def test_a_bundle_that_would_change_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "SMALLEST_COSINE", 1.1)
    with pytest.raises(BundleError, match="change vectors too much"):
        compact_bundle(write_colour_encoder(tmp_path / "colours"), tmp_path / "small")
    assert not (tmp_path / "small").exists()
