"""Further looks at tiles: when they are taken, what they cost, and that results stay in the image's own pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mca_perception.cli.main import app
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.session import open_sessions
from mca_perception.errors import InvalidImageError
from mca_perception.pipeline import PerceptionPipeline, Tiling
from tests.support.bundles import draw_tote, write_colour_bundle

RECTANGLES = {
    "red": (0.05, 0.05, 0.30, 0.30),
    "green": (0.70, 0.08, 0.95, 0.30),
    "blue": (0.10, 0.65, 0.30, 0.95),
    "yellow": (0.70, 0.70, 0.90, 0.97),
}


class Counting:
    """A session that counts its runs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.runs = 0

    def run(self, inputs: Mapping[str, Any]) -> Any:
        self.runs += 1
        return self._session.run(inputs)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("models") / "colours"
    return write_colour_bundle(folder, segmentation={"input_size": [384, 448]})


@pytest.mark.parametrize(
    ("grids", "from_objects", "looks"),
    [((), 0, 1), ((2,), 0, 5), ((2,), 4, 5), ((2,), 5, 1), ((2, 3), 1, 14)],
)
def test_tiles_are_looked_at_where_there_is_enough_to_see(
    bundle: ModelBundle, grids: tuple[int, ...], from_objects: int, looks: int
) -> None:
    sessions: dict[str, Any] = dict(open_sessions(bundle))
    counting = sessions["segmentation"] = Counting(sessions["segmentation"])
    pipeline = PerceptionPipeline(bundle, sessions)
    pipeline.tiling = Tiling(grids, from_objects)
    image, _ = draw_tote((480, 640), RECTANGLES)
    timings: dict[str, float] = {}
    pipeline.candidates(image, timings_ms=timings)
    assert counting.runs == looks
    assert set(timings) == {"letterbox", "backbone", "segmentation", "postprocess"}


@pytest.mark.parametrize("image_size", [(480, 640), (517, 333), (301, 611)])
def test_objects_seen_in_tiles_lie_where_they_were_drawn(
    bundle: ModelBundle, image_size: tuple[int, int]
) -> None:
    pipeline = PerceptionPipeline.from_bundle(bundle.path)
    image, truth = draw_tote(image_size, RECTANGLES)
    once = pipeline.perceive(image)
    pipeline.tiling = Tiling((2, 3))
    objects = pipeline.perceive(image)
    assert len(objects) == len(once) == len(RECTANGLES)
    for expected in truth.values():
        best = max(
            (objects.mask(i) & expected).sum() / (objects.mask(i) | expected).sum()
            for i in range(len(objects))
        )
        assert best > 0.98
    assert objects.embeddings is not None


def test_an_object_too_small_for_one_look_is_found_in_tiles(bundle: ModelBundle) -> None:
    pipeline = PerceptionPipeline.from_bundle(bundle.path)
    image, _ = draw_tote((1536, 1792), {"red": (0.1, 0.1, 0.3, 0.3), "green": (0.6, 0.6, 0.6045, 0.6045)})
    assert len(pipeline.perceive(image)) == 1
    pipeline.tiling = Tiling((4,))
    found = pipeline.perceive(image)
    assert len(found) == 2
    x1, y1, x2, y2 = min(found.boxes.tolist(), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    assert (x1, y1, x2, y2) == pytest.approx((1075, 922, 1083, 929), abs=5)


@pytest.mark.parametrize(
    ("text", "grids"), [("", ()), ("  ", ()), ("2", (2,)), ("2,3", (2, 3)), (" 3 , 2 ", (3, 2))]
)
def test_tiles_as_text(text: str, grids: tuple[int, ...]) -> None:
    assert Tiling.parse(text) == Tiling(grids)


@pytest.mark.parametrize("text", ["1", "0", "9", "two", "2,", "2;3", "-2", "2,2,2,2,2"])
def test_texts_that_are_no_tiles(text: str) -> None:
    with pytest.raises(ValueError, match="give"):
        Tiling.parse(text)


def test_a_number_of_objects_below_zero() -> None:
    with pytest.raises(ValueError, match="from -1 objects"):
        Tiling((2,), -1)


def test_the_command_line_names_what_it_cannot_read(tmp_path: Path) -> None:
    words = [
        "--data",
        str(tmp_path),
        "--model",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--tiles",
        "x",
    ]
    failed = CliRunner().invoke(app, ["eval", "armbench-segmentation", *words])
    assert failed.exit_code == 2
    assert "tiles are 'x'" in failed.output
    assert not (tmp_path / "out").exists()


def test_objects_of_another_image_are_refused(bundle: ModelBundle) -> None:
    pipeline = PerceptionPipeline.from_bundle(bundle.path)
    image, _ = draw_tote((480, 640), RECTANGLES)
    objects = pipeline.perceive(image)
    with pytest.raises(InvalidImageError, match="give those of this image"):
        pipeline.look_closer(image[:240], objects)
    with pytest.raises(InvalidImageError, match="have no mask"):
        pipeline.look_closer(image, objects.replace(instance_mask=None))
