"""The lifecycle node ``identification``: says which products the objects of a segmentation node are.

Run it with ``python -m mca_perception.ros.identification_node --ros-args -p gallery:=products.gallery``.
"""

from __future__ import annotations

from typing import Any

from mca_perception_msgs.msg import PerceivedObject

from mca_perception.objects import Objects
from mca_perception.ros.container_service import ContainerService
from mca_perception.ros.conversions import to_products
from mca_perception.ros.engine import Engine, EngineSlot, Settings
from mca_perception.ros.frames import NO_CONTAINER, Container
from mca_perception.ros.gallery_services import GalleryServices
from mca_perception.ros.managed_node import run_managed
from mca_perception.ros.object_node import ObjectNode
from mca_perception.ros.pick_services import PickServices
from mca_perception.ros.service_threads import ServiceThread

__all__ = ["IdentificationNode", "main"]


class IdentificationNode(ObjectNode):
    """Fills ``products``; offers ``set_container``, ``identify_pick`` and the gallery's services."""

    def __init__(self, **options: Any) -> None:
        self._container_service: ContainerService | None = None
        self._service_thread: ServiceThread | None = None
        super().__init__("identification", **options)

    def _engine_options(self) -> dict[str, Any]:
        return {**super()._engine_options(), "gallery": self.parameters["gallery"]}

    def _model_problem(self, engine: Engine) -> str:
        if engine.pipeline.bundle.manifest.identification is None:
            return f"model {engine.model} does not identify; choose one that does"
        return (
            ""
            if engine.gallery is not None
            else "the node needs a gallery to look products up; set the parameter gallery"
        )

    def _offer(self, engines: EngineSlot) -> None:
        self._container_service = container = ContainerService(self, engines, report=self.report)
        self._service_thread = ServiceThread(self, "services", report=self.report)
        GalleryServices(self._service_thread, engines, changed=container.recount)
        PickServices(self._service_thread, engines, container=self._container, settings=self._settings)

    def _container(self) -> Container:
        return self._container_service.container if self._container_service else NO_CONTAINER

    def _on_model(self) -> None:
        if self._container_service is not None:
            self._container_service.recount()

    def _settings(self) -> Settings:
        return Settings(top_k=self.parameters["top_k"], reject_unknown=self.parameters["reject_unknown"])

    def _fill(self, messages: list[PerceivedObject], found: Objects, engine: Engine) -> None:
        for i, message in enumerate(messages):
            message.products = to_products(found, i)

    def _facts(self) -> dict[str, Any]:
        return self._container_service.facts() if self._container_service else {}

    def _release(self) -> None:
        if self._service_thread is not None:
            self._service_thread.close()
            self._service_thread = None
        if self._container_service is not None:
            self._container_service.close()
            self._container_service = None
        super()._release()


def main() -> None:
    """Run the node until it is interrupted."""
    run_managed(IdentificationNode)


if __name__ == "__main__":
    main()
