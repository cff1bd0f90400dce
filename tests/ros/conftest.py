"""Pictures for the colour bundle, and node processes on a ROS domain of their own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from mca_perception.identification import Gallery
from tests.support.bundles import BACKGROUND, PALETTE, reference_photo, write_colour_bundle

COLOURS = ("red", "green", "blue")
SIZE = (96, 160)

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_SHARE = 101 // _WORKERS
_DOMAINS = itertools.count(os.getpid() * 7)


@pytest.fixture(autouse=True, scope="module")
def ros_domain() -> Iterator[int]:
    """A ROS domain for this module, from this test worker's own share of the 101 domains."""
    domain = 1 + _WORKER * _SHARE + next(_DOMAINS) % _SHARE
    before = os.environ.get("ROS_DOMAIN_ID")
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    yield domain
    if before is not None:
        os.environ["ROS_DOMAIN_ID"] = before


def colour_scene(*colours: str) -> NDArray[np.uint8]:
    """Coloured discs side by side on grey, uint8 ``[96, 160, 3]`` RGB."""
    image = np.full((*SIZE, 3), BACKGROUND, np.uint8)
    for i, colour in enumerate(colours):
        cv2.circle(image, (30 + 50 * i, 48), 20, PALETTE[colour], -1)
    return image


@pytest.fixture(scope="session")
def scene() -> Callable[..., NDArray[np.uint8]]:
    """Makes pictures of coloured discs."""
    return colour_scene


@pytest.fixture(scope="session")
def colour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model bundle that finds coloured objects; red scores 0.95, green 0.9, blue 0.85."""
    folder = tmp_path_factory.mktemp("bundle") / "colours"
    write_colour_bundle(folder, segmentation={"input_size": SIZE})
    return folder


@pytest.fixture(scope="session")
def colour_references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Reference_Images` with the products P-red, P-green and P-blue."""
    folder = tmp_path_factory.mktemp("references") / "Reference_Images"
    for colour in COLOURS:
        (folder / f"P-{colour}").mkdir(parents=True)
        cv2.imwrite(str(folder / f"P-{colour}" / "1.png"), reference_photo(colour)[..., ::-1])
    return folder


@pytest.fixture(scope="session")
def colour_gallery(colour_bundle: Path, colour_references: Path) -> Path:
    """A gallery with one product per colour."""
    from mca_perception.datasets.armbench import find_references
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.references import import_references

    target = colour_references.parent / "colours.gallery"
    pipeline = PerceptionPipeline.from_bundle(colour_bundle)
    with Gallery.open(target, model=pipeline.bundle.embedding_fingerprint) as gallery:
        assert import_references(pipeline, gallery, find_references(colour_references)).products == len(
            COLOURS
        )
    return target


_STARTED: list[NodeProcess] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A test that fails shows what the nodes of its module wrote last."""
    report = yield
    if report.failed:
        for node in _STARTED:
            report.sections.append((f"output of {node.log.name}", node.output()[-4000:]))
    return report


class NodeProcess:
    """A node as a child process; its output goes to a file."""

    def __init__(
        self, module: str, parameters: dict[str, Any], folder: Path, namespace: str = "/perception"
    ) -> None:
        name = module.removesuffix("_node")
        self.log = folder / f"{name}.log"
        config = folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        self._file = self.log.open("w")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"mca_perception.ros.{module}",
                "--ros-args",
                "-r",
                f"__ns:={namespace}",
                "--params-file",
                str(config),
            ],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "ROS_LOG_DIR": str(folder), "PYTHONUNBUFFERED": "1"},
        )

    def output(self) -> str:
        return self.log.read_text()

    def wait(self, timeout: float = 60.0) -> int:
        """Exit code, once the process has ended by itself."""
        return self.process.wait(timeout)

    def stop(self, number: int = signal.SIGINT, timeout: float = 15.0) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._file.close()


@pytest.fixture(scope="module")
def start_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., NodeProcess]]:
    """Starts node processes: `start_node("perception_node", model=...)`. All are gone after the module."""

    def start(module: str, *, namespace: str = "/perception", **parameters: Any) -> NodeProcess:
        _STARTED.append(NodeProcess(module, parameters, tmp_path_factory.mktemp("node"), namespace))
        return _STARTED[-1]

    yield start
    for node in _STARTED:  # asked first: a killed node leaves its shared memory behind
        if node.process.poll() is None:
            node.process.send_signal(signal.SIGINT)
    for node in _STARTED:
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.process.wait(15)
        node.kill()
    _STARTED.clear()


class Client:
    """A ROS node of the test itself: collects messages, calls services, publishes images."""

    def __init__(self, namespace: str = "/perception") -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node("test_client", namespace=namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._collected: dict[str, list[Any]] = {}
        self._publishers: dict[str, Any] = {}

    def wait(self, done: Callable[[], Any], timeout: float = 30.0, what: str = "") -> Any:
        """Run callbacks until `done()` is true; fails after the timeout."""
        end = time.monotonic() + timeout
        while not (result := done()):
            assert time.monotonic() < end, f"timed out waiting for {what or done}"
            self._executor.spin_once(timeout_sec=0.1)
        return result

    def collect(self, kind: Any, topic: str, profile: Any = 10) -> list[Any]:
        """An empty list that fills with the messages of a topic. A topic that is collected already stays connected."""
        if topic not in self._collected:
            self._collected[topic] = []
            self.node.create_subscription(kind, topic, self._collected[topic].append, profile)
        self._collected[topic].clear()
        return self._collected[topic]

    def perception(
        self,
        ready: Callable[[dict[str, str]], bool],
        what: str,
        timeout: float = 30.0,
        namespace: str = "/perception",
    ) -> dict[str, str]:
        """Facts of the perception node on /diagnostics, once they fulfil a condition."""
        from diagnostic_msgs.msg import DiagnosticArray

        from mca_perception.ros.diagnostics import read_status

        found: list[dict[str, str]] = []

        def look(array: Any) -> None:
            facts = read_status(array, namespace, "perception")
            if facts is not None and ready(facts):
                found.append(facts)

        subscription = self.node.create_subscription(DiagnosticArray, "/diagnostics", look, 10)
        self.wait(lambda: found, timeout, what)
        self.node.destroy_subscription(subscription)
        return found[0]

    def offered(self) -> set[str]:
        """Names of topics and services in the graph."""
        topics = self.node.get_topic_names_and_types()
        return {name for name, _ in [*topics, *self.node.get_service_names_and_types()]}

    def publisher(self, kind: Any, topic: str) -> Any:
        """A publisher of images that somebody already reads."""
        from mca_perception.ros.qos import IMAGE_OUTPUT

        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(kind, topic, IMAGE_OUTPUT)
        self.wait(self._publishers[topic].get_subscription_count, what=f"a subscriber of {topic}")
        return self._publishers[topic]

    def heard(self, subscribers: int = 1) -> None:
        """Wait until the perception node knows this many subscribers of its objects.

        It finds a node's subscriptions in the order in which they were made: what was collected before the objects
        is connected then, too.
        """
        self.perception(
            lambda facts: facts["state"] == "active" and int(facts["objects_subscribers"]) >= subscribers,
            f"{subscribers} subscribers of objects",
        )

    def call(self, kind: Any, name: str, timeout: float = 30.0, **fields: Any) -> Any:
        """Answer of a service, which is asked once."""
        from rcl_interfaces.srv import ListParameters

        client = self.node.create_client(kind, name)
        self.wait(client.service_is_ready, timeout, f"service {name}")
        parameters = self.wait(lambda: self._parameters_beside(name), timeout, f"the node of service {name}")
        self.known_to(ListParameters, parameters)
        future = client.call_async(kind.Request(**fields))
        self.wait(future.done, timeout, f"answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def _parameters_beside(self, name: str) -> str | None:
        """The service that lists the parameters of the node that offers a service.

        A node may have helpers for its services, without parameters; they carry its name.
        """
        from rclpy.node import NodeNameNonExistentError

        service = self.node.resolve_service_name(name)
        services = dict(self.node.get_service_names_and_types())
        nodes = self.node.get_node_names_and_namespaces()
        for server, namespace in nodes:
            with contextlib.suppress(NodeNameNonExistentError):  # it has just ended
                if service in dict(self.node.get_service_names_and_types_by_node(server, namespace)):
                    names = [
                        node for node, its_namespace in nodes if its_namespace == namespace and node in server
                    ]
                    listings = [f"{namespace.rstrip('/')}/{node}/list_parameters" for node in names]
                    return next((listing for listing in listings if listing in services), None)
        return None

    def known_to(self, kind: Any, name: str, timeout: float = 60.0) -> None:
        """Wait until the node of a service knows every reader that was made before.

        A node learns of readers in the order in which they were made, and drops an answer whose reader it has not
        heard of within 100 ms: once it answers a younger client, older ones get their answers, too.
        """
        end = time.monotonic() + timeout
        client = self.node.create_client(kind, name)
        self.wait(client.service_is_ready, timeout, f"service {name}")
        asked = []
        while not any(future.done() for future in asked):
            assert time.monotonic() < end, f"timed out waiting for an answer of {name}"
            asked.append(client.call_async(kind.Request()))
            with contextlib.suppress(AssertionError):
                self.wait(asked[-1].done, 2.0)
        self.node.destroy_client(client)

    def close(self) -> None:
        import rclpy

        self._executor.shutdown(timeout_sec=1)
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)


def _connect() -> Iterator[Client]:
    pytest.importorskip("rclpy")
    from mca_perception.ros.transport import configure_transport

    configure_transport()
    made = Client()
    yield made
    made.close()


@pytest.fixture
def client(ros_domain: int) -> Iterator[Client]:
    """A fresh ROS node on the module's domain."""
    yield from _connect()


@pytest.fixture(scope="module")
def lasting_client(ros_domain: int) -> Iterator[Client]:
    """A ROS node for all tests of a module: what is connected stays so, and nobody else comes and goes."""
    yield from _connect()
