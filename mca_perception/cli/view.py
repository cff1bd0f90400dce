"""`mca view`: the nodes' topics in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from mca_perception.errors import SourceError


def command(
    namespace: Annotated[
        list[str] | None, typer.Option(help="Namespace of a perception node; may be repeated.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")
    ] = "127.0.0.1",
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after so many seconds.")] = None,
) -> None:
    """Serve overlays, objects, boxes, points and diagnostics to Foxglove in a browser; no ROS desktop is needed.

    Open the address in Foxglove (Open connection, Foxglove WebSocket) and import a layout of config/foxglove.

    \b
    Example:
      mca view
      mca view --namespace /cell/left --namespace /cell/right
    \f
    Raises:
        SourceError: the port is in use.
    """
    from mca_perception.ros.web_view import serve

    def started(number: int) -> None:
        typer.echo(f"ws://{host}:{number}  (Ctrl-C ends)")

    try:
        serve(namespace or ["/perception"], host=host, port=port, seconds=seconds, started=started)
    except (OSError, RuntimeError) as error:
        raise SourceError(f"cannot serve on {host}:{port} ({error}); choose another --port") from error
