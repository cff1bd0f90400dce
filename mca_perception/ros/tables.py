"""The viewer's table, live on a terminal and as plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mca_perception.ros.session_log import FrameRecord

__all__ = ["ResultView"]

_TABLE_EVERY = 10


class ResultView:
    """Shows the newest frame: a table that renews itself on a terminal, elsewhere lines and some tables."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> ResultView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, number: int, frame: FrameRecord) -> None:
        """Show frame ``number`` (counting from 1)."""
        if self._live is not None:
            self._live.update(Group(Text(_line(number, frame)), make_table(frame)), refresh=True)
            return
        self._console.print(_line(number, frame), highlight=False, soft_wrap=True)
        if number % _TABLE_EVERY == 1:
            self._console.print(make_table(frame))


def make_table(frame: FrameRecord) -> Table:
    """The objects of one frame, best score first."""
    table = Table()
    table.add_column("id", justify="right")
    table.add_column("product")
    for column in ("similarity", "score", "box x1 y1 x2 y2"):
        table.add_column(column, justify="right")
    for row in frame.objects:
        table.add_row(
            str(row.id),
            row.product or row.label,
            f"{row.product_score:.2f}" if row.product else "-",
            f"{row.score:.2f}",
            " ".join(f"{value:5.0f}" for value in row.box),
        )
    return table


def _line(number: int, frame: FrameRecord) -> str:
    processing = frame.timings_ms.get("processing", 0.0)
    name = f" {frame.container_id}" if frame.container_id else ""
    return (
        f"frame {number:3d}{name}: {len(frame.objects):2d} objects, "
        f"latency {frame.latency_ms:5.0f} ms (processing {processing:.0f} ms)"
    )
