"""Shapes that come with every image have a graph of their own, which gives the same numbers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.engine_cache import EngineCache
from mca_perception.deploy.session import SessionOptions, open_sessions
from mca_perception.deploy.sessions import why_not
from mca_perception.deploy.sessions.shape_profiles import OfUsualShapes, usual_shapes_of
from mca_perception.resources import resource_path
from tests.support.bundles import write_colour_bundle

SCENE = (1, 3, 256, 320)


@pytest.fixture(scope="module")
def nano() -> ModelBundle:
    return ModelBundle.open(resource_path("models/nano"))


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> ModelBundle:
    return write_colour_bundle(tmp_path_factory.mktemp("models") / "colours")


def test_scenes_are_usual_and_crops_come_in_any_number(nano, colours) -> None:
    assert usual_shapes_of(nano, "backbone") == [{"images": SCENE}]
    assert usual_shapes_of(nano, "segmentation") == []  # nothing in it is free but the batch
    assert usual_shapes_of(nano, "identification") == []
    head = usual_shapes_of(colours, "segmentation")
    assert head == [{"features": (1, 321, 3), "images": SCENE}]


def test_each_usual_shape_is_opened_once_for_all_threads() -> None:
    opened = []

    def open_for(shapes):
        time.sleep(0.02)
        opened.append(dict(shapes))
        return object()

    usual = OfUsualShapes([{"x": (1, 2)}, {"x": (4,)}], open_for)
    assert usual.get({"x": np.zeros((2, 2))}) is None
    assert opened == []
    barrier = threading.Barrier(4)

    def get(_: int) -> object:
        barrier.wait(10)
        return usual.get({"x": np.zeros((1, 2))})

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(get, range(4)))
    assert len(found) == 1
    assert usual.get({"x": np.zeros(4)}) not in found
    assert opened == [{"x": (1, 2)}, {"x": (4,)}]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("name", "model"), [("onnxruntime-cpu", "nano"), ("onnxruntime-cpu", "colours"), ("openvino", "colours")]
)
def test_usual_shapes_give_the_same_numbers(request, tmp_path, name, model, cached) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    cache = EngineCache(tmp_path / "engines") if cached else None
    options = SessionOptions(threads=1, cache=cache)
    bundle = request.getfixturevalue(model)
    session = open_sessions(bundle, graphs=["backbone"], session=name, options=options)["backbone"]
    images = np.random.default_rng(0).normal(size=(2, *SCENE[1:])).astype(np.float32)
    together = session.run({"images": images})["features"]
    single = session.run({"images": images[:1]})["features"]
    np.testing.assert_allclose(single, together[:1], atol=1e-4)
    again = session.run({"images": images[1:]})["features"]
    np.testing.assert_allclose(again, together[1:], atol=1e-4)
    if cache is not None:
        assert len(list(cache.folder.glob("*.engine"))) == 2
    (spec,) = session.inputs
    assert not isinstance(spec.shape[0], int)  # what the graph takes is told as before
