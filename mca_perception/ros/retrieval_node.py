"""The lifecycle node ``retrieval``: documents in, images out; indexes folders while it answers.

Run it with ``python -m mca_perception.ros.retrieval_node --ros-args -r __ns:=/retrieval -p store:=photos.store``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from mca_perception_msgs.srv import AddImages, IndexInfo, SearchImages
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from mca_perception.ros.diagnostics import PERIOD_S, verdict_on_transitions
from mca_perception.ros.engine import bundle_folder
from mca_perception.ros.managed_node import ManagedNode, run_managed, transition
from mca_perception.ros.retrieval_actions import IndexAction
from mca_perception.ros.retrieval_service import RetrievalService
from mca_perception.ros.service_threads import ServiceThread

__all__ = ["RetrievalNode", "main"]


class RetrievalNode(ManagedNode):
    """Searches images; see ``docs/retrieval.md`` for services, action and parameters."""

    def __init__(self, **options: Any) -> None:
        super().__init__("retrieval", **options)
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
            visual_share=parameters["visual_share"],
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
        self._diagnostics.publish(*self._status(self.state, {}))

    def _status(self, state: str, facts: Mapping[str, Any]) -> tuple[bytes, str, dict[str, Any]]:
        snapshot, action = self._statistics.snapshot(), self._action
        facts = {
            "state": state,
            **facts,
            "store": self.parameters["store"],
            "indexing": action is not None and action.is_running,
            "searches": snapshot.processed,
            **{f"latency_{name}_ms": value for name, value in snapshot.latency_ms.items()},
            "last_error": snapshot.last_error,
            "transition_error": snapshot.transition_error,
        }
        if found := verdict_on_transitions(state, snapshot):
            return *found, facts
        if snapshot.error_is_recent:
            return DiagnosticStatus.WARN, snapshot.last_error, facts
        return DiagnosticStatus.OK, f"{state}, {snapshot.processed} searches", facts


def main() -> None:
    """Run the node until it is interrupted."""
    run_managed(RetrievalNode)


if __name__ == "__main__":
    main()
