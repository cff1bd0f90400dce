"""The node ``web_view``: serves the topics of perception nodes to Foxglove in a browser.

Run it with ``python -m mca_perception.ros.web_view_node``, or as ``mca view``.
"""

from __future__ import annotations

import sys
from typing import Any

from rclpy.node import Node

from mca_perception.errors import SourceError
from mca_perception.ros.parameters import NodeParameters
from mca_perception.ros.runner import Spinner, run_node
from mca_perception.ros.web_view import WebView

__all__ = ["WebViewNode", "main"]


class WebViewNode(Node):
    """Holds the server; parameters are described in ``docs/ros.md``."""

    def __init__(self, **options: Any) -> None:
        """Start to serve.

        Raises:
            SourceError: foxglove-sdk is not installed, or the port is in use.
        """
        super().__init__("web_view", **options)
        parameters = NodeParameters(self, "web_view")
        host, port = parameters["host"], parameters["port"]
        try:
            import foxglove

            self._server = foxglove.start_server(name="mca_perception", host=host, port=port)
        except ModuleNotFoundError as error:
            raise SourceError(
                "foxglove-sdk is not installed; install it: pip install 'mca_perception[foxglove]'"
            ) from error
        except (OSError, RuntimeError) as error:
            raise SourceError(
                f"cannot serve on {host}:{port} ({error}); choose another port, 0 takes a free one"
            ) from error
        self._view = WebView(self, list(parameters["namespaces"]))
        self.get_logger().info(f"open ws://{host}:{self._server.port} in Foxglove")

    def close(self) -> None:
        """Stop to serve."""
        self._server.stop()


def _run(node: WebViewNode, spinner: Spinner) -> int:
    spinner.spin_until(lambda: False)
    return 0


def main() -> None:
    """Serve until interrupted."""
    sys.exit(run_node(WebViewNode, _run))


if __name__ == "__main__":
    main()
