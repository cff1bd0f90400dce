from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.session import open_sessions
from mca_perception.errors import BundleError, GalleryError, InvalidImageError
from mca_perception.identification.crops import crop_object
from mca_perception.identification.gallery import Gallery
from mca_perception.pipeline import Objects, PerceptionPipeline
from tests.support.bundles import (
    PALETTE,
    draw_tote,
    reference_photo,
    write_colour_bundle,
    write_inspecting_bundle,
    write_two_headed_bundle,
)

RECTANGLES = {
    "red": (0.05, 0.05, 0.40, 0.45),
    "green": (0.55, 0.08, 0.95, 0.50),
    "blue": (0.10, 0.55, 0.45, 0.95),
    "yellow": (0.55, 0.60, 0.90, 0.97),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("models") / "colours"
    return write_colour_bundle(folder, segmentation={"input_size": [384, 448]})


@pytest.fixture(scope="module")
def pipeline(bundle) -> PerceptionPipeline:
    return PerceptionPipeline.from_bundle(bundle.path)


@pytest.fixture
def gallery(tmp_path: Path, bundle, pipeline):
    with Gallery.open(tmp_path / "products.gallery", model=bundle.embedding_fingerprint) as gallery:
        for name in PALETTE:
            gallery.add(name, pipeline.embed_references([reference_photo(name), reference_photo(name, 91)]))
        yield gallery


def with_gallery(bundle: ModelBundle, gallery: Gallery, **options) -> PerceptionPipeline:
    return PerceptionPipeline.from_bundle(bundle.path, gallery=gallery, **options)


def colour_of(image: np.ndarray, objects: Objects, i: int) -> str:
    middle = np.median(image[objects.mask(i)][::101], axis=0)
    return next(name for name, colour in PALETTE.items() if tuple(middle) == colour)


@pytest.mark.parametrize(
    "image_size",
    [(480, 640), (333, 517), (517, 333), (256, 320), (1023, 1223), (301, 611), (97, 131)],
)
def test_masks_and_boxes_lie_on_the_drawn_objects(pipeline, image_size) -> None:
    image, truth = draw_tote(image_size, RECTANGLES)

    objects = pipeline.perceive(image)

    assert objects.image_size == image_size
    assert sorted(colour_of(image, objects, i) for i in range(len(objects))) == sorted(RECTANGLES)
    pixel = 1 + max(image_size) / 320
    for i in range(len(objects)):
        expected = truth[colour_of(image, objects, i)]
        found = objects.mask(i)
        assert (found & expected).sum() / (found | expected).sum() > 0.98
        rows, columns = np.nonzero(expected)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(objects.boxes[i], box, atol=pixel)
        centre = [columns.mean(), rows.mean()]
        rows, columns = np.nonzero(found)
        np.testing.assert_allclose([columns.mean(), rows.mean()], centre, atol=0.3 * pixel)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert objects.boxes[i].tolist() == tight


def test_objects_come_best_first_with_every_timing(pipeline) -> None:
    objects = pipeline.perceive(draw_tote((200, 300), RECTANGLES)[0])
    assert objects.scores.tolist() == pytest.approx([0.95, 0.9, 0.85, 0.8])
    stages = {"letterbox", "backbone", "segmentation", "postprocess", "identification", "total"}
    assert set(objects.timings_ms) == stages
    assert sum(objects.timings_ms.values()) <= 2 * objects.timings_ms["total"] + 1e-6
    assert objects.product_ids is None
    np.testing.assert_allclose(np.linalg.norm(objects.embeddings, axis=1), 1, rtol=1e-5)


def test_blank_image_has_no_objects(bundle, gallery) -> None:
    objects = with_gallery(bundle, gallery).perceive(np.full((50, 70, 3), 127, np.uint8))
    assert len(objects) == 0
    assert objects.product_ids == []
    assert objects.embeddings.shape == (0, 4)
    assert not objects.instance_mask.any()


def test_objects_are_identified(bundle, gallery) -> None:
    image, _ = draw_tote((333, 517), RECTANGLES)
    objects = with_gallery(bundle, gallery, top_k=3).perceive(image)
    assert [ids[0] for ids in objects.product_ids] == [colour_of(image, objects, i) for i in range(4)]
    assert all(len(set(ids)) == 3 for ids in objects.product_ids)
    assert (np.diff(objects.product_scores, axis=1) <= 0).all()
    assert objects.product_scores[:, 0].min() > 0.95


@pytest.mark.parametrize(
    ("manifest", "allowed"),
    [
        (["red", "cyan"], {"red", "cyan"}),
        (["red", "never heard of"], {"red"}),
        (["never heard of"], set()),
        ([], set()),
    ],
)
def test_manifest_limits_the_products(bundle, gallery, manifest, allowed) -> None:
    image, _ = draw_tote((333, 517), RECTANGLES)
    objects = with_gallery(bundle, gallery).perceive(image, manifest=manifest)
    assert len(objects) == 4
    assert all(set(ids) == allowed for ids in objects.product_ids)


def test_empty_gallery_leaves_objects_without_products(bundle, tmp_path) -> None:
    with Gallery.open(tmp_path / "empty.gallery") as empty:
        objects = with_gallery(bundle, empty).perceive(draw_tote((333, 517), RECTANGLES)[0])
    assert objects.product_ids == [()] * 4
    assert np.isnan(objects.product_scores).all()
    assert objects.to_rows()[0]["product_id"] is None


class CountingSession:
    """Passes calls on to a real session and counts them with their batch size."""

    def __init__(self, session, calls: Counter[tuple[str, int]], name: str) -> None:
        self.session, self.calls, self.name = session, calls, name

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls[self.name, len(next(iter(inputs.values())))] += 1
        return self.session.run(inputs)


def test_one_backbone_pass_for_the_scene_and_one_for_all_crops(bundle) -> None:
    calls: Counter[tuple[str, int]] = Counter()
    sessions = {n: CountingSession(s, calls, n) for n, s in open_sessions(bundle).items()}
    pipeline = PerceptionPipeline.from_bundle(bundle.path, session=sessions)
    pipeline.perceive(draw_tote((333, 517), RECTANGLES)[0])
    assert calls == {
        ("backbone", 1): 1,
        ("segmentation", 1): 1,
        ("backbone", 4): 1,
        ("identification", 4): 1,
    }


def test_crops_are_those_of_the_whole_image(pipeline) -> None:
    image, _ = draw_tote((333, 517), {**RECTANGLES, "red": (0, 0, 0.4, 0.45), "yellow": (0.6, 0.6, 1, 1)})
    image[::3, ::3] //= 2
    objects = pipeline.perceive(image)
    assert len(objects) == 4
    settings = {"size": 32, "margin": 0.1, "background": 127}
    crops = [crop_object(image, o.boxes[0], mask=o.mask(0), **settings) for o in objects]
    np.testing.assert_allclose(pipeline.embed_crops(crops), objects.embeddings, atol=1e-5)


def test_threads_get_the_same_objects(bundle, gallery) -> None:
    pipeline = with_gallery(bundle, gallery)
    images = [draw_tote((150 + 10 * i, 210), RECTANGLES)[0] for i in range(8)]
    alone = [pipeline.perceive(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(pipeline.perceive, images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.instance_mask, other.instance_mask)
        assert one.product_ids == other.product_ids


def test_input_image_is_not_changed_and_may_be_a_read_only_view(pipeline) -> None:
    image, _ = draw_tote((333, 517), RECTANGLES)
    view = np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]
    view.flags.writeable = False
    before = view.copy()
    assert len(pipeline.perceive(view)) == 4
    np.testing.assert_array_equal(view, before)


def test_score_threshold_leaves_objects_out(bundle) -> None:
    image = draw_tote((333, 517), RECTANGLES)[0]
    pipeline = PerceptionPipeline.from_bundle(bundle.path, score_threshold=0.87)
    assert len(pipeline.perceive(image)) == 2
    pipeline.score_threshold = 0.0
    assert len(pipeline.perceive(image)) == 4
    assert len(pipeline.candidates(image, score_threshold=0.93).scores) == 1


def test_mask_threshold_of_the_bundle_is_used(tmp_path, pipeline) -> None:
    strict = write_colour_bundle(tmp_path / "strict", segmentation={"mask_threshold": 0.7})
    image = draw_tote((333, 517), RECTANGLES)[0]
    areas = pipeline.perceive(image).areas()
    assert (PerceptionPipeline.from_bundle(strict.path).perceive(image).areas() < areas).all()


@pytest.mark.parametrize("shape", [(32, 32), (16, 32), (300, 200), (1, 1)])
def test_crops_of_any_size_are_embedded(pipeline, shape) -> None:
    crops = [np.full((*shape, 3), (255, 0, 0), np.uint8)] * 3
    embeddings = pipeline.embed_crops(crops)
    assert embeddings.shape == (3, 4)
    assert (embeddings.argmax(axis=1) == 0).all()


def test_many_crops_are_embedded_in_parts(pipeline) -> None:
    rng = np.random.default_rng(0)
    crops = list(rng.integers(0, 256, (150, 32, 32, 3), dtype=np.uint8))
    whole = pipeline.embed_crops(crops)
    np.testing.assert_allclose(
        whole[[0, 70, 149]], pipeline.embed_crops([crops[i] for i in (0, 70, 149)]), atol=1e-6
    )
    assert pipeline.embed_crops([]).shape == (0, 4)


def blank(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    """An image that takes no memory, whatever its size."""
    return np.broadcast_to(np.zeros(1, dtype), shape)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (blank(0, 0, 3), "at least 1 x 1"),
        (blank(0, 100, 3), "at least 1 x 1"),
        (blank(10, 10, 3, dtype=np.float32), "float32; convert it to uint8"),
        (blank(10, 10, 3, dtype=np.uint16), "uint16"),
        (blank(10, 10), "shape"),
        (blank(10, 10, 4), "shape"),
        (blank(3, 10, 10), "shape"),
        (blank(1, 10, 10, 3), "shape"),
        (blank(10_000, 10_000, 3), "10000 x 10000 pixels, over 50,000,000"),
        ([[[0, 0, 0]]], "list"),
        (None, "NoneType"),
    ],
)
def test_bad_images_are_refused_everywhere(pipeline, image, message) -> None:
    for use in (
        pipeline.perceive,
        lambda i: pipeline.embed_crops([i]),
        lambda i: pipeline.embed_references([i]),
    ):
        with pytest.raises(InvalidImageError, match=message):
            use(image)


def test_pipeline_works_on_after_a_bad_image(pipeline) -> None:
    with pytest.raises(InvalidImageError):
        pipeline.perceive(blank(0, 0, 3))
    assert len(pipeline.perceive(draw_tote((333, 517), RECTANGLES)[0])) == 4


@pytest.mark.parametrize(
    ("model", "width", "message"),
    [("another", 4, "of model another"), (None, 7, "width 7"), ("another", 7, "width 7")],
)
def test_gallery_of_another_model_is_refused(bundle, tmp_path, model, width, message) -> None:
    with Gallery.open(tmp_path / "other.gallery", model=model) as other:
        other.add("a", np.ones((1, width)))
        with pytest.raises(GalleryError, match=message):
            with_gallery(bundle, other)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"segmentation": {"input_size": [250, 320]}}, "multiples of 16"),
        ({"identification": {"crop_size": 33}}, "multiples of 16"),
    ],
)
def test_sizes_that_do_not_fit_the_patches_are_refused(tmp_path, sections, message) -> None:
    odd = write_colour_bundle(tmp_path / "odd", **sections)
    with pytest.raises(BundleError, match=message):
        PerceptionPipeline.from_bundle(odd.path)


@pytest.mark.parametrize("graph", ["backbone", "segmentation", "identification"])
def test_incomplete_sessions_are_refused(bundle, graph) -> None:
    sessions = open_sessions(bundle)
    del sessions[graph]
    with pytest.raises(BundleError, match=f"no graph '{graph}'"):
        PerceptionPipeline.from_bundle(bundle.path, session=sessions)


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({"head": "cascade"}, [0.75]),
        ({"head": "cascade", "score_threshold": 0.5}, [0.75, 0.5]),
        ({"head": "cascade", "score_threshold": 0.9}, []),
        ({"head": "edge"}, [0.95, 0.9, 0.85, 0.8]),
        ({}, [0.95, 0.9, 0.85, 0.8]),
    ],
)
def test_head_is_chosen_with_its_own_threshold(tmp_path, options, scores) -> None:
    two_headed = write_two_headed_bundle(tmp_path / "both")
    pipeline = PerceptionPipeline.from_bundle(two_headed.path, **options)
    objects = pipeline.perceive(draw_tote((512, 640), RECTANGLES)[0])
    assert objects.scores.tolist() == pytest.approx(scores)
    assert pipeline.segmentation_settings.head == options.get("head", "edge")
    if "cascade" in options.values():
        boxes = [[0, 0, 320, 256], [320, 256, 640, 512]][: len(scores)]
        np.testing.assert_allclose(objects.boxes, np.reshape(boxes, (-1, 4)), atol=1)


def test_graphs_of_other_heads_are_not_needed(tmp_path) -> None:
    two_headed = write_two_headed_bundle(tmp_path / "both")
    sessions = open_sessions(two_headed, graphs={"backbone", "identification", "cascade"})
    assert set(sessions) == {"backbone", "identification", "cascade"}
    PerceptionPipeline.from_bundle(two_headed.path, session=sessions, head="cascade")
    with pytest.raises(BundleError, match="no graph 'segmentation'"):
        PerceptionPipeline.from_bundle(two_headed.path, session=sessions)


@pytest.mark.parametrize(
    ("head", "message"), [("cascade", "the edge head, not the cascade"), ("x", "not the x")]
)
def test_head_that_the_bundle_lacks_is_refused(bundle, head, message) -> None:
    with pytest.raises(BundleError, match=message):
        PerceptionPipeline.from_bundle(bundle.path, head=head)


@pytest.mark.parametrize("options", [{"score_threshold": 1.5}, {"score_threshold": -0.1}, {"top_k": 0}])
def test_options_out_of_range_are_refused(bundle, options) -> None:
    with pytest.raises(ValueError, match="|".join(options)):
        PerceptionPipeline.from_bundle(bundle.path, **options)


def test_unavailable_provider_is_refused(bundle) -> None:
    with pytest.raises(BundleError, match="NoSuchProvider is not available"):
        PerceptionPipeline.from_bundle(bundle.path, providers=["NoSuchProvider"])


def test_defects_share_the_crop_pass_with_identification(tmp_path: Path) -> None:
    inspecting = write_inspecting_bundle(tmp_path / "inspecting")
    calls: Counter[tuple[str, int]] = Counter()
    sessions = {n: CountingSession(s, calls, n) for n, s in open_sessions(inspecting).items()}
    pipeline = PerceptionPipeline.from_bundle(inspecting.path, session=sessions)
    assert pipeline.perceive(draw_tote((200, 300), RECTANGLES)[0]).defects is None
    calls.clear()
    pipeline.inspects = True
    objects = pipeline.perceive(draw_tote((200, 300), RECTANGLES)[0])
    assert [calls[name, 4] for name in ("backbone", "identification", "defects")] == [1, 1, 1]
    assert objects.embeddings is not None
    assert objects.defects is not None
    np.testing.assert_allclose(objects.defects.sum(axis=1), 1, rtol=1e-5)
    colours = dict(zip(("red", "green", "blue"), objects.defects.argmax(axis=1).tolist(), strict=False))
    assert colours == {"red": 1, "green": 0, "blue": 2}
    assert "defects" in objects.timings_ms
    assert pipeline.perceive(np.full((50, 70, 3), 127, np.uint8)).defects.shape == (0, 3)
    pipeline.identifies = False
    alone = pipeline.perceive(draw_tote((200, 300), RECTANGLES)[0])
    assert alone.embeddings is None
    np.testing.assert_array_equal(alone.defects, objects.defects)
