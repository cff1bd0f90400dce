"""Tiles cover the image, objects cut by a tile are left to its neighbour, and views agree on one list of instances."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.geometry import Letterbox
from mca_perception.segmentation.postprocess import Window
from mca_perception.segmentation.tiling import MAX_GRID, JoinedCandidates, Tile, join_views, tiles_of

SIZE = (120, 200)
WHOLE = Tile(slice(0, SIZE[0]), slice(0, SIZE[1]))
OBJECT, CONTAINER = 0, 1


@pytest.mark.parametrize("size", [(480, 640), (1, 1), (7, 1000), (2048, 2448)])
@pytest.mark.parametrize("grid", [1, 2, 3, MAX_GRID])
def test_tiles_cover_the_image_and_have_one_size(size: tuple[int, int], grid: int) -> None:
    covered = np.zeros(size, np.int64)
    shapes = set()
    for tile in tiles_of(size, grid):
        part = covered[tile.rows, tile.columns]
        shapes.add(part.shape)
        part += 1
    assert covered.min() >= 1
    assert len(shapes) == 1
    assert len(tiles_of(size, grid)) == grid**2


def test_borders_inside_the_image_are_known() -> None:
    tiles = tiles_of((100, 100), 3)
    assert tiles[0].inner == (False, True, False, True)
    assert tiles[4].inner == (True, True, True, True)
    assert tiles[8].inner == (True, False, True, False)
    for tile in tiles:
        assert tile.inner[0] == (tile.rows.start > 0)
        assert tile.inner[3] == (tile.columns.stop < 100)


@pytest.mark.parametrize("grid", [0, -1, MAX_GRID + 1])
def test_grids_out_of_range(grid: int) -> None:
    with pytest.raises(ValueError, match=f"{grid} x {grid} tiles"):
        tiles_of(SIZE, grid)


def seen(tile: Tile, *instances: tuple[float, int, tuple[int, int, int, int]]) -> JoinedCandidates:
    """Rectangles (score, label, xyxy in the image) as they look in a tile; parts outside of it are cut off."""
    size = (tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start)
    windows: list[Window] = []
    for _, _, (x1, y1, x2, y2) in instances:
        y = slice(max(y1 - tile.rows.start, 0), min(y2 - tile.rows.start, size[0]))
        x = slice(max(x1 - tile.columns.start, 0), min(x2 - tile.columns.start, size[1]))
        windows.append((y, x, np.ones((y.stop - y.start, x.stop - x.start), np.float32)))
    return JoinedCandidates(
        np.array([score for score, _, _ in instances], np.float32),
        np.array([label for _, label, _ in instances], np.int64),
        Letterbox.fit(size, size),
        tuple(windows),
    )


def join(
    *views: list[tuple[Tile, JoinedCandidates]], most: int = 100
) -> list[tuple[float, int, tuple[int, ...]]]:
    joined = join_views(views, Letterbox.fit(SIZE, SIZE), whole_labels=[CONTAINER], max_objects=most)
    found = []
    for score, label, (y, x, values) in zip(joined.scores, joined.labels, joined.windows(), strict=True):
        assert (values > 0).all()
        found.append((round(float(score), 4), int(label), (x.start, y.start, x.stop, y.stop)))
    return found


LEFT, RIGHT = (
    Tile(slice(0, 120), slice(0, 120), (False, False, False, True)),
    Tile(slice(0, 120), slice(80, 200), (False, False, True, False)),
)


def test_one_object_of_two_views_is_one_with_the_surer_mask() -> None:
    whole = [(WHOLE, seen(WHOLE, (0.6, OBJECT, (10, 10, 40, 40))))]
    tiles = [(LEFT, seen(LEFT, (0.8, OBJECT, (11, 10, 41, 40)))), (RIGHT, seen(RIGHT))]
    assert join(whole, tiles) == [(0.75, OBJECT, (11, 10, 41, 40))]  # (0.8 + (0.6 + 0.8) / 2) / 2


def test_what_one_view_alone_sees_is_less_sure() -> None:
    whole = [(WHOLE, seen(WHOLE, (0.8, OBJECT, (10, 10, 40, 40))))]
    tiles = [(LEFT, seen(LEFT)), (RIGHT, seen(RIGHT, (0.8, OBJECT, (150, 10, 180, 40))))]
    assert join(whole, tiles) == [
        (0.6, OBJECT, (10, 10, 40, 40)),
        (0.6, OBJECT, (150, 10, 180, 40)),
    ]


def test_an_object_cut_by_a_tile_is_left_to_the_tile_that_sees_it_whole() -> None:
    cut = (0.9, OBJECT, (90, 20, 130, 60))  # crosses the right border of the left tile
    tiles = [(LEFT, seen(LEFT, cut)), (RIGHT, seen(RIGHT, (0.5, *cut[1:])))]
    assert join([(WHOLE, seen(WHOLE))], tiles) == [(0.375, OBJECT, (90, 20, 130, 60))]


def test_objects_at_the_border_of_the_image_are_not_cut() -> None:
    tiles = [
        (LEFT, seen(LEFT, (0.8, OBJECT, (0, 0, 30, 30)))),
        (RIGHT, seen(RIGHT, (0.8, OBJECT, (170, 90, 200, 120)))),
    ]
    assert len(join([(WHOLE, seen(WHOLE))], tiles)) == 2


def test_containers_come_from_the_whole_image_with_their_own_score() -> None:
    whole = [(WHOLE, seen(WHOLE, (0.9, CONTAINER, (5, 5, 195, 115))))]
    tiles = [(LEFT, seen(LEFT, (0.95, CONTAINER, (5, 5, 100, 115)))), (RIGHT, seen(RIGHT))]
    assert join(whole, tiles) == [(0.9, CONTAINER, (5, 5, 195, 115))]


def test_neighbours_and_classes_stay_apart() -> None:
    whole = [
        (
            WHOLE,
            seen(
                WHOLE,
                (0.9, OBJECT, (10, 10, 40, 40)),
                (0.8, OBJECT, (35, 10, 65, 40)),
                (0.7, 2, (10, 10, 40, 40)),
            ),
        )
    ]
    assert [entry[1:] for entry in join(whole)] == [
        (OBJECT, (10, 10, 40, 40)),
        (OBJECT, (35, 10, 65, 40)),
        (2, (10, 10, 40, 40)),
    ]


def test_nothing_seen_and_the_limit_of_instances() -> None:
    assert join([(WHOLE, seen(WHOLE))]) == []
    crowd = [(0.5 + n / 100, OBJECT, (10 * n, 0, 10 * n + 9, 20)) for n in range(10)]
    found = join([(WHOLE, seen(WHOLE, *crowd))], most=3)
    assert [entry[0] for entry in found] == [0.59, 0.58, 0.57]


def test_joined_candidates_can_be_chosen_from() -> None:
    joined = seen(WHOLE, (0.9, OBJECT, (0, 0, 9, 9)), (0.4, OBJECT, (20, 0, 29, 9)))
    assert len(joined.above(0.5).scores) == 1
    chosen = joined.where(np.array([False, True]))
    windows: Iterator[Window] = chosen.windows()
    (y, x, _) = next(windows)
    assert (x.start, y.start) == (20, 0)
    logits: NDArray[np.float32] = chosen.placed[0][2]
    assert logits.shape == (9, 9)
