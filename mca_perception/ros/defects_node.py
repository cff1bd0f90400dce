"""The lifecycle node ``defects``: judges whether the objects of a segmentation node are fit to travel on.

Run it with ``python -m mca_perception.ros.defects_node --ros-args -p model:=models/with_defects``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mca_perception_msgs.msg import PerceivedObject, PerceivedObjects

from mca_perception.objects import Objects
from mca_perception.ros.conversions import defect_of
from mca_perception.ros.defect_alarms import DefectAlarms
from mca_perception.ros.defect_messages import rate_problem
from mca_perception.ros.defect_services import InspectionServices
from mca_perception.ros.engine import Engine, EngineSlot, Settings
from mca_perception.ros.managed_node import run_managed
from mca_perception.ros.object_node import Found, ObjectNode
from mca_perception.ros.service_threads import ServiceThread

__all__ = ["DefectsNode", "main"]


class DefectsNode(ObjectNode):
    """Fills ``defect`` and raises alarms; offers ``inspect_pick``."""

    def __init__(self, **options: Any) -> None:
        self._alarms: DefectAlarms | None = None
        self._service_thread: ServiceThread | None = None
        super().__init__("defects", **options)

    def _model_problem(self, engine: Engine) -> str:
        return "" if engine.inspector else f"model {engine.model} has no defect head; choose one that has"

    def _offer(self, engines: EngineSlot) -> None:
        self._alarms = DefectAlarms(self)
        self._service_thread = ServiceThread(self, "services", report=self.report)
        InspectionServices(self._service_thread, engines, rate=lambda: float(self.parameters["defect_fpr"]))

    def _settings(self) -> Settings:
        return Settings(identify=False, inspect=True)

    def _fill(self, messages: list[PerceivedObject], found: Objects, engine: Engine) -> None:
        rule = engine.defect_rule(self.parameters["defect_fpr"])
        for i, message in enumerate(messages):
            message.defect = defect_of(found, i, rule)

    def _beside(self, message: PerceivedObjects, found: Found) -> Sequence[Callable[[], object]]:
        assert self._alarms is not None
        assert self._engines is not None
        return (
            partial(self._alarms.publish, message),
            *super()._beside(message, found),
            partial(self._alarms.explain, found.image, found.objects, message.header, self._engines),
        )

    def _refuse(self, name: str, value: Any) -> str:
        """Why a parameter cannot have a value that lies within its limits."""
        if name == "defect_fpr" and self._engines is not None:
            with self._engines.use() as engine:
                return rate_problem(engine.inspector, value)
        return ""

    def _release(self) -> None:
        if self._service_thread is not None:
            self._service_thread.close()
            self._service_thread = None
        if self._alarms is not None:
            self._alarms.close()
            self._alarms = None
        super()._release()


def main() -> None:
    """Run the node until it is interrupted."""
    run_managed(DefectsNode)


if __name__ == "__main__":
    main()
