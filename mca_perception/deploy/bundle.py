"""Model bundles: a folder with a manifest, weights, ONNX graphs and a model card, checked by hash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from mca_perception.deploy.manifest import (
    EMBEDDING_GRAPHS,
    CommonManifest,
    FileSpec,
    Manifest,
    SegmentationSpec,
)
from mca_perception.errors import BundleError

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Bundle",
    "ModelBundle",
    "write_bundle",
]

AnyBundle = TypeVar("AnyBundle", bound="Bundle")

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4_000_000
_CHUNK_BYTES = 1 << 20
_FINGERPRINT_LENGTH = 16


class Bundle:
    """A bundle on disk, opened with :meth:`open`; every kind is a subclass with its own manifest.

    Attributes:
        path: the folder.
        manifest: its parsed manifest.
    """

    manifest_type: ClassVar[type[CommonManifest]] = CommonManifest

    def __init__(self, path: Path, manifest: CommonManifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls: type[AnyBundle], path: str | os.PathLike[str], *, verify: bool = True) -> AnyBundle:
        """Open a bundle.

        Args:
            path: the bundle's folder.
            verify: also compare the SHA-256 of every file. Presence and size are always checked.

        Raises:
            BundleError: folder, manifest or a file is missing, the manifest is not valid or of another schema
                version, a path leaves the folder, or a file differs from the manifest.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise BundleError(
                f"model bundle {folder} is not a folder; give the folder that holds {MANIFEST_NAME}"
            )
        manifest = _read_manifest(folder / MANIFEST_NAME, cls.manifest_type)
        bundle = cls(folder, manifest)
        for graph in manifest.graphs.values():
            if graph.file not in manifest.files:
                raise BundleError(
                    f"{folder}: 'files' does not list graph {graph.file!r}; export the bundle again"
                )
        for name, spec in manifest.files.items():
            _check_file(_confined(folder, name), spec, verify=verify)
        return bundle

    @property
    def fingerprint(self) -> str:
        """What the bundle computes, as 16 hex digits.

        Covers every file except documentation (``*.md``), and the :meth:`settings` that change results; not a
        corrected model card or a recalibrated score threshold.
        """
        return self._digest([name for name in self.manifest.files if not name.endswith(".md")])

    def _digest(self, files: Iterable[str]) -> str:
        """Of the named files and :meth:`settings`."""
        hashes = {name: self.manifest.files[name].sha256 for name in files}
        canonical = json.dumps({"files": hashes, **self.settings()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:_FINGERPRINT_LENGTH]

    def settings(self) -> dict[str, Any]:
        """What of the manifest changes what the graphs compute from an input, as JSON values."""
        return {}

    def path_of(self, graph: str) -> Path:
        """Path of an ONNX graph.

        Raises:
            BundleError: the bundle has no graph of that name.
        """
        try:
            spec = self.manifest.graphs[graph]
        except KeyError:
            known = ", ".join(sorted(self.manifest.graphs)) or "none"
            raise BundleError(
                f"{self.path} has no graph {graph!r} (it has: {known}); choose another bundle"
            ) from None
        return _confined(self.path, spec.file)


class ModelBundle(Bundle):
    """A bundle with a perception model: backbone, segmentation, identification."""

    manifest_type = Manifest
    manifest: Manifest

    @property
    def embedding_fingerprint(self) -> str:
        """What embeds products, as 16 hex digits: galleries are made by it.

        Covers the graphs that references go through and the :meth:`settings`. A bundle that gains or exchanges a
        segmentation head, a defect head or the network that joins views leaves galleries valid.
        """
        graphs = self.manifest.graphs
        return self._digest(graphs[name].file for name in EMBEDDING_GRAPHS if name in graphs)

    def segmentation_head(self, head: str | None = None) -> SegmentationSpec:
        """Settings of a segmentation head.

        Args:
            head: ``edge`` or ``cascade``; the bundle's default when not given.

        Raises:
            BundleError: the bundle does not hold that head, or none.
        """
        default = self.manifest.segmentation
        if default is None:
            raise BundleError(f"model bundle {self.path} does not segment; choose one that does")
        held = {spec.head: spec for spec in (*self.manifest.further_heads, default)}
        if head is None:
            return default
        if head not in held:
            raise BundleError(
                f"model bundle {self.path} holds the {' and the '.join(sorted(held))} head, not the {head} head; "
                f"leave the head out or choose a bundle with the {head} head"
            )
        return held[head]

    def settings(self) -> dict[str, Any]:
        """Preprocessing, and how crops are made."""
        manifest = self.manifest
        return {
            "preprocessing": manifest.preprocessing.model_dump(mode="json", exclude_defaults=True),
            "identification": manifest.identification and manifest.identification.settings(),
        }


def write_bundle(
    directory: str | os.PathLike[str],
    manifest_fields: Mapping[str, Any],
    files: Mapping[str, str | os.PathLike[str] | bytes],
    kind: type[AnyBundle] = ModelBundle,  # type: ignore[assignment]  # a default cannot depend on the variable
) -> AnyBundle:
    """Write a bundle in one step: a reader sees the old folder or the new one, never a mixture.

    ``files`` may lie inside the folder that is being replaced, so a manifest is updated by writing the same
    files again.

    Args:
        directory: the bundle's folder. An earlier bundle there is replaced; any other non-empty folder is
            refused.
        manifest_fields: the manifest without ``schema_version`` and ``files``, which are computed.
        files: content (bytes) or source path of every file by its name in the bundle.
        kind: class of the bundle; its manifest is checked.

    Returns:
        The bundle, opened and verified.

    Raises:
        BundleError: a field or file name is not valid, a file is missing, or the folder holds something else.
    """
    target = Path(directory)
    if (
        target.exists()
        and not (target / MANIFEST_NAME).is_file()
        and (target.is_file() or any(target.iterdir()))
    ):
        raise BundleError(f"{target} exists and is not a model bundle; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        staging.chmod(0o755)
        table = {name: _write_file(staging, name, content) for name, content in sorted(files.items())}
        fields = {**manifest_fields, "schema_version": SCHEMA_VERSION, "files": table}
        manifest = _parse(fields, staging / MANIFEST_NAME, kind.manifest_type)
        text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2) + "\n"
        (staging / MANIFEST_NAME).write_text(text, encoding="utf-8")
        kind.open(staging)
        _replace_folder(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return kind.open(target)


def _read_manifest(path: Path, kind: type[CommonManifest]) -> CommonManifest:
    if not path.is_file():
        raise BundleError(f"{path} is missing; export the bundle again or give another folder")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES:,} bytes and cannot be a manifest")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}); export the bundle again") from error
    if not isinstance(fields, dict):
        raise BundleError(f"{path} must hold a JSON object; export the bundle again")
    return _parse(fields, path, kind)


def _parse(fields: dict[str, Any], path: Path, kind: type[CommonManifest]) -> CommonManifest:
    version = fields.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema_version {version!r}, this release reads {SCHEMA_VERSION}; "
            "export the bundle again with this release"
        )
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            f"{path}: field {field!r} is not valid ({first['msg']}); export the bundle again"
        ) from error


def _confined(folder: Path, name: str) -> Path:
    """Resolve a file name from a manifest, which must stay inside the bundle."""
    relative = PurePosixPath(name)
    path = folder / relative
    inside = path.resolve().is_relative_to(folder.resolve())
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or not name or not inside:
        raise BundleError(
            f"{folder}: file name {name!r} leaves the bundle; only relative names inside it are allowed"
        )
    return path


def _check_file(path: Path, spec: FileSpec, *, verify: bool) -> None:
    if not path.is_file():
        raise BundleError(
            f"{path} is listed in {MANIFEST_NAME} but missing; copy or export the whole bundle again"
        )
    size = path.stat().st_size
    if size != spec.bytes:
        raise BundleError(
            f"{path} has {size:,} bytes, the manifest says {spec.bytes:,}; copy or export the bundle again"
        )
    if verify and _sha256(path) != spec.sha256:
        raise BundleError(
            f"{path} was altered: its SHA-256 differs from the manifest; copy or export the bundle again"
        )


def _write_file(folder: Path, name: str, content: str | os.PathLike[str] | bytes) -> dict[str, Any]:
    if name == MANIFEST_NAME:
        raise BundleError(f"files must not name {MANIFEST_NAME}: it is written from manifest_fields")
    path = _confined(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif Path(content).is_file():
        shutil.copyfile(content, path)
    else:
        raise BundleError(f"file {content} for the bundle does not exist; export it first")
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _replace_folder(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of ``target``; the old folder is back in place if that fails."""
    if not target.exists():
        staging.replace(target)
        return
    previous = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.replace(previous)
    try:
        staging.replace(target)
    except OSError:
        previous.replace(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)
