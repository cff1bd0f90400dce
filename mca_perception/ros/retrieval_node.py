"""The lifecycle node ``retrieval``: documents in, images out; indexes folders while it answers.

Run it with ``python -m mca_perception.ros.retrieval_node --ros-args -r __ns:=/retrieval -p store:=photos.store``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from mca_perception_msgs.srv import AddImages, IndexInfo, SearchImages
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from mca_perception.errors import McaError
from mca_perception.ros.diagnostics import PERIOD_S, DiagnosticsPublisher
from mca_perception.ros.engine import bundle_folder
from mca_perception.ros.parameters import NodeParameters
from mca_perception.ros.retrieval_actions import IndexAction
from mca_perception.ros.retrieval_service import RetrievalService
from mca_perception.ros.runner import Spinner, run_node
from mca_perception.ros.service_threads import ServiceThread
from mca_perception.ros.statistics import Statistics
from mca_perception.ros.transitions import SUCCESS, transition

__all__ = ["RetrievalNode", "main"]


class RetrievalNode(LifecycleNode):
    """Searches images; see ``docs/retrieval.md`` for services, action and parameters.

    Attributes:
        state: name of the lifecycle state.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("retrieval", **options)
        self.state = "unconfigured"
        self.parameters = NodeParameters(
            self, "retrieval", may_set=lambda spec: spec.live or self.state == "unconfigured"
        )
        self._statistics = Statistics()
        self._diagnostics = DiagnosticsPublisher(self, "retrieval")
        self._service: RetrievalService | None = None
        self._threads: list[ServiceThread] = []
        self._action: IndexAction | None = None
        self.create_timer(PERIOD_S, self._watch)

    @transition("inactive")
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open index and model; an index that is not there yet is opened when it is."""
        parameters = self.parameters
        model = parameters["model"]
        self._service = RetrievalService(
            Path(parameters["store"]),
            model=str(bundle_folder(model)) if model else "",
            back_end=parameters["back_end"],
            location=parameters["location"],
            spacy=parameters["spacy"],
            summariser=parameters["summariser"],
            threads=parameters["threads"],
        )
        if Path(parameters["store"]).exists():
            retriever = self._service.open()
            self.get_logger().info(f"{retriever.store.count} images, model {retriever.encoder.name}")
        else:
            self.get_logger().info(f"{parameters['store']} does not exist yet; index something into it")
        return super().on_configure(state)

    @transition("active")
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Offer services and action."""
        assert self._service is not None
        result = super().on_activate(state)
        searches, changes = (
            ServiceThread(self, name, report=self.report) for name in ("searches", "changes")
        )
        self._threads = [searches, changes]
        searches.add(SearchImages, "search", self._search)
        changes.add(AddImages, "add_images", self._service.add_images)
        changes.add(IndexInfo, "index_info", self._service.info)
        self._action = IndexAction(self, self._service, report=self.report)
        return result

    @transition("inactive")
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Withdraw services and action; a running index job stops after its batch."""
        self._stop()
        return super().on_deactivate(state)

    @transition("unconfigured")
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Close the index."""
        result = super().on_cleanup(state)
        self._release()
        return result

    @transition("finalized")
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and close everything."""
        self.close()
        return SUCCESS

    def start(self) -> None:
        """Configure and activate, when ``autostart`` is set. After a failure the node waits to be asked."""
        if self.parameters["autostart"] and self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def close(self) -> None:
        """Stop and close everything."""
        self._stop()
        self._release()

    def undo(self) -> None:
        """Go back to the present state after a transition that failed half-way."""
        if self.state != "active":
            self._stop()
        if self.state == "unconfigured":
            self._release()

    def report(self, error: Exception) -> None:
        """Log an error and show it on ``/diagnostics``."""
        text = str(error) if isinstance(error, McaError) else f"{type(error).__name__}: {error}"
        self.get_logger().error(text)
        self._statistics.note_error(text)

    def _search(self, request: SearchImages.Request, response: SearchImages.Response) -> None:
        assert self._service is not None
        start = time.perf_counter()
        self._service.search(request, response)
        elapsed = (time.perf_counter() - start) * 1000
        self._statistics.count_processed(latency_ms=elapsed, processing_ms=elapsed)

    def _stop(self) -> None:
        if self._action is not None:
            self._action.close()
            self._action = None
        for thread in self._threads:
            thread.close()
        self._threads = []

    def _release(self) -> None:
        if self._service is not None:
            self._service.close()
            self._service = None

    def _watch(self) -> None:
        snapshot = self._statistics.snapshot()
        facts: dict[str, Any] = {
            "state": self.state,
            "store": self.parameters["store"],
            "indexing": self._action is not None and self._action.is_running,
            "searches": snapshot.processed,
            **{f"latency_{name}_ms": value for name, value in snapshot.latency_ms.items()},
            "last_error": snapshot.last_error,
        }
        if self.state == "unconfigured" and snapshot.last_error:
            self._diagnostics.publish(DiagnosticStatus.ERROR, f"not configured: {snapshot.last_error}", facts)
        elif snapshot.error_is_recent:
            self._diagnostics.publish(DiagnosticStatus.WARN, snapshot.last_error, facts)
        else:
            self._diagnostics.publish(
                DiagnosticStatus.OK, f"{self.state}, {snapshot.processed} searches", facts
            )


def _run(node: RetrievalNode, spinner: Spinner) -> int:
    node.start()
    spinner.spin_until(lambda: False)
    return 0


def main() -> None:
    """Run the node until it is interrupted."""
    sys.exit(run_node(RetrievalNode, _run))


if __name__ == "__main__":
    main()
