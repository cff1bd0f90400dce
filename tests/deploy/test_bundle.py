from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.errors import BundleError
from tests.support.bundles import bundle_files, manifest_fields, write_colour_bundle


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "colours"
    write_colour_bundle(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "colours"))


def edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_round_trip(folder) -> None:
    bundle = ModelBundle.open(folder)
    assert bundle.manifest.name == "colours"
    assert bundle.manifest.segmentation.input_size == (256, 320)
    assert bundle.manifest.identification.embedding_dim == 4
    assert bundle.path_of("backbone") == folder / "backbone.onnx"
    assert set(bundle.manifest.files) == set(bundle_files())
    assert len(bundle.fingerprint) == 16
    int(bundle.fingerprint, 16)


def rename(old: str, new: str):
    return lambda folder: (folder / old).rename(folder / new)


def append(name: str, content: bytes):
    def change(folder: Path) -> None:
        with (folder / name).open("ab") as stream:
            stream.write(content)

    return change


def flip_last_byte(name: str):
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return change


def overwrite(text: str):
    return lambda folder: (folder / "manifest.json").write_text(text)


def setting(*keys: str, value: Any):
    def change(fields: dict[str, Any]) -> None:
        for key in keys[:-1]:
            fields = fields[key]
        fields[keys[-1]] = value

    return lambda folder: edit(folder, change)


def listed(name: str):
    entry = {"sha256": "0" * 64, "bytes": 0}
    return lambda folder: edit(folder, lambda fields: fields["files"].update({name: entry}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (rename("manifest.json", "x.json"), r"manifest\.json is missing"),
        (rename("backbone.onnx", "x.onnx"), r"backbone\.onnx is listed .* but missing"),
        (append("weights.safetensors", b"more"), "bytes, the manifest says"),
        (flip_last_byte("segmentation.onnx"), "was altered"),
        (flip_last_byte("README.md"), "was altered"),
        (overwrite("{"), "is not JSON"),
        (overwrite("[]"), "must hold a JSON object"),
        (overwrite("{}"), "schema_version None"),
        (overwrite(" " * 5_000_000), "larger than"),
        (setting("schema_version", value=2), "schema_version 2, this release reads 1"),
        (setting("schema_version", value="1"), "schema_version '1'"),
        (setting("licence", value=None), "field 'licence'"),
        (setting("preprocessing", "channel_order", value="BGR"), "field 'preprocessing.channel_order'"),
        (setting("preprocessing", "mean", value=[0.5]), "field 'preprocessing.mean"),
        (setting("segmentation", "input_size", value=[100_000, 100_000]), "field 'segmentation.input_size"),
        (setting("segmentation", "mask_threshold", value=1.0), "field 'segmentation.mask_threshold'"),
        (setting("identification", "crop_size", value=0), "field 'identification.crop_size'"),
        (setting("graphs", "backbone", "inputs", value=[]), "field 'graphs.backbone.inputs'"),
        (setting("graphs", "backbone", "file", value="other.onnx"), r"does not list graph 'other\.onnx'"),
        (setting("files", "backbone.onnx", "sha256", value="xyz"), "field 'files.backbone.onnx.sha256'"),
        (listed("../outside.txt"), "leaves the bundle"),
        (listed("/etc/hostname"), "leaves the bundle"),
        (listed("a\\..\\b"), "leaves the bundle"),
        (listed(""), "leaves the bundle"),
    ],
)
def test_damaged_bundles_are_refused(folder, damage, message) -> None:
    damage(folder)
    with pytest.raises(BundleError, match=message):
        ModelBundle.open(folder)


def test_link_out_of_the_bundle_is_refused(folder, tmp_path) -> None:
    (tmp_path / "outside").write_bytes((folder / "README.md").read_bytes())
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="leaves the bundle"):
        ModelBundle.open(folder)


def test_verification_can_be_left_out_but_sizes_are_checked(folder) -> None:
    flip_last_byte("segmentation.onnx")(folder)
    assert ModelBundle.open(folder, verify=False).manifest.name == "colours"
    append("segmentation.onnx", b"x")(folder)
    with pytest.raises(BundleError, match="bytes"):
        ModelBundle.open(folder, verify=False)


def test_unknown_graph_is_refused(folder) -> None:
    with pytest.raises(
        BundleError, match=r"no graph 'defects' \(it has: backbone, identification, segmentation\)"
    ):
        ModelBundle.open(folder).path_of("defects")


def test_fingerprint_follows_what_is_computed(tmp_path, original) -> None:
    before = ModelBundle.open(original).fingerprint
    files, fields = bundle_files(), manifest_fields()
    same = write_bundle(
        tmp_path / "a", {**fields, "metrics": {"x": 1}}, {**files, "README.md": b"# New text\n"}
    )
    assert same.fingerprint == before
    same = write_colour_bundle(tmp_path / "b", segmentation={"score_threshold": 0.5})
    assert same.fingerprint == before
    others = [
        write_bundle(tmp_path / "c", fields, {**files, "weights.safetensors": b"other"}),
        write_colour_bundle(tmp_path / "d", identification={"margin": 0.2}),
        write_colour_bundle(tmp_path / "e", preprocessing={"mean": [0.4] * 3}),
    ]
    assert len({before, *(other.fingerprint for other in others)}) == 4


def test_embedding_fingerprint_outlives_other_heads(tmp_path, original) -> None:
    before = ModelBundle.open(original).embedding_fingerprint
    files, fields = bundle_files(), manifest_fields()
    same = [
        write_bundle(tmp_path / "a", fields, {**files, "weights.safetensors": b"other"}),
        write_bundle(tmp_path / "b", fields, {**files, "segmentation.onnx": b"other"}),
    ]
    assert {bundle.embedding_fingerprint for bundle in same} == {before}
    others = [
        write_bundle(tmp_path / "c", fields, {**files, "identification.onnx": b"other"}),
        write_colour_bundle(tmp_path / "d", identification={"margin": 0.2}),
    ]
    assert len({before, *(bundle.embedding_fingerprint for bundle in others)}) == 3


def test_bundle_is_replaced_from_its_own_files(folder) -> None:
    sources = {name: folder / name for name in bundle_files()}
    bundle = write_bundle(folder, {**manifest_fields(), "metrics": {"mask_map50": 0.5}}, sources)
    assert bundle.manifest.metrics == {"mask_map50": 0.5}
    assert [p.name for p in folder.parent.iterdir()] == ["colours"]


@pytest.mark.parametrize(
    ("fields", "files", "message"),
    [
        ({"name": ""}, {}, "field 'name'"),
        ({}, {"../x": b""}, "leaves the bundle"),
        ({}, {"manifest.json": b""}, "written from manifest_fields"),
        ({}, {"x": Path("nowhere")}, "does not exist"),
        ({"graphs": {"g": {"file": "x.onnx", "inputs": [], "outputs": []}}}, {}, "field 'graphs.g.inputs'"),
    ],
)
def test_failed_write_leaves_the_old_bundle(folder, fields, files, message) -> None:
    before = ModelBundle.open(folder).manifest
    with pytest.raises(BundleError, match=message):
        write_bundle(folder, {**manifest_fields(), **fields}, {**bundle_files(), **files})
    assert ModelBundle.open(folder).manifest == before
    assert [p.name for p in folder.parent.iterdir()] == ["colours"]


def test_other_folders_are_not_overwritten(tmp_path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep")
    with pytest.raises(BundleError, match="not a model bundle"):
        write_bundle(tmp_path / "precious", manifest_fields(), bundle_files())
    assert (tmp_path / "precious" / "file").read_text() == "keep"


def test_bundle_may_fill_an_empty_folder_and_is_readable_by_others(tmp_path) -> None:
    (tmp_path / "new").mkdir()
    write_colour_bundle(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o555 == 0o555
