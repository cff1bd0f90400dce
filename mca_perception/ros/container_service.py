"""The service ``set_container``, and the container that it has set."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mca_perception_msgs.srv import SetContainer
from rclpy.node import Node

from mca_perception.errors import McaError
from mca_perception.ros.engine import EngineSlot
from mca_perception.ros.frames import NO_CONTAINER, Container

__all__ = ["ContainerService"]


class ContainerService:
    """Answers on the executor's thread, so that the next image already belongs to the container.

    Attributes:
        container: the container in view.
    """

    def __init__(self, node: Node, engines: EngineSlot, *, report: Callable[[Exception], None]) -> None:
        """Offer the service, with no container set.

        Args:
            node: offers it.
            engines: the model in use, with the gallery that products are counted in.
            report: told of errors that are not the caller's.
        """
        self.container: Container = NO_CONTAINER
        self._node = node
        self._engines = engines
        self._report = report
        self._lock = threading.Lock()
        self._service = node.create_service(SetContainer, "set_container", self._set)

    def _set(self, request: SetContainer.Request, response: SetContainer.Response) -> SetContainer.Response:
        try:
            with self._engines.use() as engine, self._lock:
                container, unknown = engine.container(request.container_id, list(request.product_ids))
                self.container = container
        except McaError as error:
            response.message = str(error)
            return response
        except Exception as error:
            self._report(error)
            response.message = f"internal error: {error}"
            return response
        response.success = True
        response.unknown_products = unknown
        allowed = container.product_ids
        response.message = (
            "all products are allowed"
            if allowed is None
            else f"{len(allowed) - len(unknown)} of {len(allowed)} products are in the gallery"
        )
        return response

    def recount(self) -> None:
        """Products of the container may have come into the gallery, or gone; the limit itself stays in any case."""
        with self._engines.use() as engine, self._lock:
            container = self.container
            if container.product_ids is not None:
                try:
                    self.container, _ = engine.container(container.container_id, container.product_ids)
                except Exception as error:  # the gallery's file may be anything by now
                    self._report(error)

    def facts(self) -> dict[str, Any]:
        """Keys and values for the diagnostics."""
        return {
            "container_id": self.container.container_id,
            "container_products": len(self.container.product_ids or ()),
            "container_unknown_products": self.container.unknown,
        }

    def close(self) -> None:
        """Withdraw the service."""
        self._node.destroy_service(self._service)
