"""Picks of ARMBench's identification folders as a source of images. Nothing here knows ROS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mca_perception.datasets.armbench import VIEWS, Pick, read_identification
from mca_perception.errors import DatasetError, InvalidImageError, SourceError
from mca_perception.ros.image_headers import encoded_size
from mca_perception.ros.sources import Frame, read_encoded

__all__ = ["PickSource"]

BEFORE = VIEWS[0]


class PickSource:
    """The view before each pick, with its container and the pick itself; picks without that view are skipped.

    Args:
        folder: with ``Picks/`` and ``Reference_Images/``.
    """

    live = False

    def __init__(self, folder: Path) -> None:
        try:
            index = read_identification(folder)
        except DatasetError as error:
            raise SourceError(str(error)) from error
        self._picks = index.picks
        self.skipped = sum(index.skipped.values())
        self.description = f"{len(self._picks)} picks in {folder}"

    def __iter__(self) -> Iterator[Frame]:
        for pick in self._picks:
            try:
                yield self._read(pick)
            except (InvalidImageError, OSError):
                self.skipped += 1

    def _read(self, pick: Pick) -> Frame:
        if BEFORE not in pick.views:
            raise InvalidImageError(f"pick {pick.id} has no {BEFORE}")
        data = read_encoded(pick.views[BEFORE])
        encoded_size(data)
        return Frame(
            f"pick {pick.id}", encoded=data, container_id=pick.id, product_ids=pick.container, pick=pick
        )

    def close(self) -> None:
        """Nothing is held open."""
