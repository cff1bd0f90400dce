"""The lifecycle node ``crisis``: posts in, reports and alerts out. The service's core is ``crisis.service``.

Run it with ``python -m mca_perception.ros.crisis_node --ros-args -r __ns:=/crisis -p model:=models/crisis``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from mca_perception_msgs.msg import CrisisPost
from mca_perception_msgs.msg import CrisisReport as ReportMessage
from mca_perception_msgs.srv import ClassifyCrisis, RankedReports
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Header

from mca_perception.crisis.classifier import CrisisClassifier
from mca_perception.crisis.drift import DriftWatch
from mca_perception.crisis.posts import CrisisReport
from mca_perception.crisis.service import CrisisService, ServiceSettings
from mca_perception.errors import PostError
from mca_perception.ros import qos
from mca_perception.ros.crisis_diagnostics import crisis_status
from mca_perception.ros.crisis_messages import to_post, to_refusal, to_report
from mca_perception.ros.deferred_service import DeferredService
from mca_perception.ros.diagnostics import PERIOD_S
from mca_perception.ros.engine import bundle_folder
from mca_perception.ros.managed_node import LOG_EVERY_S, ManagedNode, run_managed, transition

__all__ = ["CrisisNode", "main"]


class CrisisNode(ManagedNode):
    """Categorises posts; see ``docs/crisis.md`` for topics, services and parameters."""

    def __init__(self, **options: Any) -> None:
        super().__init__("crisis", **options)
        self._classifier: CrisisClassifier | None = None
        self._core: CrisisService | None = None
        self._outputs: list[Any] = []
        self._subscription: Any = None
        self._offered: list[DeferredService | Any] = []
        self._reported = ""
        self._next_report = 0.0
        self.create_timer(PERIOD_S / 4, self._watch)

    # Lifecycle

    @transition("inactive")
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model."""
        parameters = self.parameters
        self._classifier = CrisisClassifier.from_bundle(
            bundle_folder(parameters["model"]), threads=parameters["threads"]
        )
        self._outputs = [
            self.create_lifecycle_publisher(ReportMessage, name, qos.POSTS) for name in ("reports", "alerts")
        ]
        self.get_logger().info(f"model {self._classifier.model}, labels {self._classifier.labels.version}")
        return super().on_configure(state)

    @transition("active")
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the service's core; offer the services and read the stream."""
        assert self._classifier is not None
        result = super().on_activate(state)
        parameters = self.parameters
        settings = ServiceSettings(
            batch_size=parameters["batch_size"],
            batch_seconds=parameters["batch_wait_ms"] / 1000,
            queue_size=parameters["queue_size"],
            queue_bytes=parameters["queue_megabytes"] * 1_000_000,
            cache_size=parameters["cache_size"],
            ranked_per_event=parameters["ranked_per_event"],
        )
        reference = self._classifier.bundle.training_shares()
        drift = DriftWatch(reference, parameters["drift_window"]) if reference else None
        self._core = CrisisService(self._classifier, settings, drift=drift)
        self._offered = [
            DeferredService(self, ClassifyCrisis, "classify", self._classify, profile=qos.REQUESTS),
            self.create_service(RankedReports, "ranked", self._ranked),
        ]
        self._subscription = self.create_subscription(CrisisPost, "posts", self._receive, qos.POSTS)
        return result

    def _log_error(self, text: str) -> None:
        self.get_logger().error(text, throttle_duration_sec=LOG_EVERY_S)  # a stream may bring thousands

    def _stop(self) -> None:
        if self._subscription is not None:
            self.destroy_subscription(self._subscription)
            self._subscription = None
        if self._core is not None:
            self._core.close()  # while the answers can still be sent
            self._core = None
        for service in self._offered:
            if isinstance(service, DeferredService):
                service.close()
            else:
                self.destroy_service(service)
        self._offered = []

    def _release(self) -> None:
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        self._outputs = []
        self._classifier = None

    # Posts: handed in on the executor's thread, answered there from the cache or on the core's thread

    def _receive(self, message: CrisisPost) -> None:
        self._submit(message, lambda report: self._publish(report))

    def _classify(
        self, request: ClassifyCrisis.Request, response: ClassifyCrisis.Response
    ) -> Future[ClassifyCrisis.Response]:
        answer: Future[ClassifyCrisis.Response] = Future()

        def fill(report: ReportMessage) -> None:
            response.report = report
            response.success = bool(report.humanitarian)
            if response.success:
                self._publish(report)
            else:
                response.message = report.warnings[0]
            answer.set_result(response)

        self._submit(request.post, fill)
        return answer

    def _submit(self, message: CrisisPost, answer: Callable[[ReportMessage], None]) -> None:
        """Hand a post to the core; ``answer`` gets its report, or a report that says why there is none."""
        assert self._core is not None
        assert self._classifier is not None
        model, version = self._classifier.model, self._classifier.labels.version

        def finish(done: Future[CrisisReport]) -> None:
            try:
                report = done.result()
                self._statistics.count_processed(latency_ms=report.latency_ms, processing_ms=report.model_ms)
                answer(to_report(report, message.header))
            except PostError as error:
                self._statistics.count_drop("refused")
                answer(to_refusal(message, str(error), model, version))
            except Exception as error:
                self.report(error)
                answer(to_refusal(message, f"internal error: {error}", model, version))

        self._statistics.count_received()
        self._core.submit(to_post(message)).add_done_callback(finish)

    def _publish(self, report: ReportMessage) -> None:
        reports, alerts = self._outputs
        if reports.get_subscription_count():
            reports.publish(report)
        if report.alert and not report.cached:
            alerts.publish(report)

    def _ranked(
        self, request: RankedReports.Request, response: RankedReports.Response
    ) -> RankedReports.Response:
        assert self._core is not None
        ranked = self._core.ranked
        reports = ranked.top(request.event_id, request.limit or None)
        response.reports = [to_report(report, Header()) for report in reports]
        response.event_ids = ranked.events()
        response.success = True
        return response

    def _status(self, state: str, facts: Mapping[str, Any]) -> tuple[bytes, str, dict[str, Any]]:
        return crisis_status(state, self._statistics.snapshot(), None, facts)

    def _watch(self) -> None:
        """Publish diagnostics every second, and at once when the state changes."""
        now = time.monotonic()
        if now < self._next_report and self.state == self._reported:
            return
        self._reported, self._next_report = self.state, now + PERIOD_S
        facts = {}
        if self._classifier is not None:
            facts = {"model": self._classifier.model, "label_version": self._classifier.labels.version}
        self._diagnostics.publish(*crisis_status(self.state, self._statistics.snapshot(), self._core, facts))


def main() -> None:
    """Run the node until it is interrupted."""
    run_managed(CrisisNode)


if __name__ == "__main__":
    main()
