"""A small real bundle that sees colours, pictures for it, and node processes on a ROS domain of their own."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220)}
WIDTH, HEIGHT = 160, 96

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
    image = np.full((HEIGHT, WIDTH, 3), 127, np.uint8)
    for i, colour in enumerate(colours):
        cv2.circle(image, (30 + 50 * i, 48), 20, COLOURS[colour], -1)
    return image


@pytest.fixture(scope="session")
def scene() -> Callable[..., NDArray[np.uint8]]:
    """Makes pictures of coloured discs."""
    return colour_scene


def _graphs() -> dict[str, bytes]:
    """ONNX graphs with the names and shapes of a real bundle: features are patch means, objects are pure colours."""
    from onnx import TensorProto, helper

    def graph(
        nodes: list[Any],
        inputs: dict[str, list[Any]],
        outputs: dict[str, list[Any]],
        constants: dict[str, Any],
    ) -> bytes:
        def tensors(specs: dict[str, list[Any]]) -> list[Any]:
            kinds = {"labels": TensorProto.INT64}
            return [
                helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), s) for n, s in specs.items()
            ]

        stored = []
        for name, value in constants.items():
            array = np.asarray(value)
            kind = TensorProto.INT64 if array.dtype == np.int64 else TensorProto.FLOAT
            stored.append(helper.make_tensor(name, kind, array.shape, array.ravel().tolist()))
        body = helper.make_graph(nodes, "colours", tensors(inputs), tensors(outputs), stored)
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return bytes(model.SerializeToString())

    node = helper.make_node
    image, features = ["N", 3, "H", "W"], ["N", "T", 3]
    backbone = graph(
        [
            node("AveragePool", ["images"], ["patches"], kernel_shape=[16, 16], strides=[16, 16]),
            node("Reshape", ["patches", "flat"], ["rows"]),
            node("Transpose", ["rows"], ["tokens"], perm=[0, 2, 1]),
            node("ReduceMean", ["tokens", "axis1"], ["cls"]),
            node("Concat", ["cls", "tokens"], ["features"], axis=1),
        ],
        {"images": image},
        {"features": features},
        {"flat": np.array([0, 3, -1]), "axis1": np.array([1])},
    )
    segmentation = graph(
        [
            node("AveragePool", ["images"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
            # purity of each channel: 2 c - (r + g + b) - 0.8, above 0 only inside a disc of that colour
            node("ReduceSum", ["small", "axis1"], ["sum"]),
            node("Mul", ["small", "two"], ["doubled"]),
            node("Sub", ["doubled", "sum"], ["difference"]),
            node("Sub", ["difference", "offset"], ["purity"]),
            node("Mul", ["purity", "sharpness"], ["logits"]),
            node("ReduceMax", ["logits", "pixels"], ["peaks"], keepdims=0),
            node("Sigmoid", ["peaks"], ["unordered"]),
            node("TopK", ["unordered", "three"], ["scores", "order"], axis=1),
            node("Squeeze", ["order", "axis0"], ["first_order"]),
            node("Gather", ["logits", "first_order"], ["mask_logits"], axis=1),
            node("Mul", ["order", "zero"], ["labels"]),
        ],
        {"features": features, "images": image},
        {"scores": ["N", 3], "labels": ["N", 3], "mask_logits": ["N", 3, "h", "w"]},
        {
            "axis0": np.array([0]),
            "axis1": np.array([1]),
            "pixels": np.array([2, 3]),
            "three": np.array([3]),
            "zero": np.array(0),
            "two": np.array(2.0),
            "offset": np.array(0.8),
            "sharpness": np.array(4.0),
        },
    )
    identification = graph(
        [
            node("ReduceMean", ["features", "axis1"], ["mean"], keepdims=0),
            node("LpNormalization", ["mean"], ["embeddings"], axis=1, p=2),
        ],
        {"features": features},
        {"embeddings": ["N", 3]},
        {"axis1": np.array([1])},
    )
    return {"backbone": backbone, "segmentation": segmentation, "identification": identification}


def _spec(name: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    def tensors(names: list[str]) -> list[dict[str, Any]]:
        return [{"name": n, "dtype": "float32", "shape": ["N"]} for n in names]

    return {"file": f"{name}.onnx", "inputs": tensors(inputs), "outputs": tensors(outputs)}


@pytest.fixture(scope="session")
def colour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model bundle that finds red, green and blue objects and embeds their colour."""
    pytest.importorskip("onnx")
    from mca_perception.deploy.bundle import write_bundle

    graphs = _graphs()
    fields = {
        "name": "colours",
        "version": "1",
        "created": "2026-01-01T00:00:00Z",
        "licence": "Apache-2.0",
        "backbone": {
            "name": "patch_means",
            "img_size": 64,
            "patch_size": 16,
            "embed_dim": 3,
            "parameters": 0,
        },
        "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "channel_order": "RGB"},
        "graphs": {
            "backbone": _spec("backbone", ["images"], ["features"]),
            "segmentation": _spec(
                "segmentation", ["features", "images"], ["scores", "labels", "mask_logits"]
            ),
            "identification": _spec("identification", ["features"], ["embeddings"]),
        },
        "segmentation": {
            "input_size": [96, 160],
            "labels": ["Object"],
            "score_threshold": 0.5,
            "nms_iou": 0.7,
            "mask_threshold": 0.5,
            "max_objects": 10,
            "calibrated_on": "nothing",
        },
        "identification": {"crop_size": 32, "embedding_dim": 3, "margin": 0.1, "background": 127},
    }
    folder = tmp_path_factory.mktemp("bundle") / "colours"
    write_bundle(folder, fields, {f"{name}.onnx": data for name, data in graphs.items()})
    return folder


@pytest.fixture(scope="session")
def colour_gallery(colour_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with one product per colour."""
    from mca_perception.ros.gallery_builder import build_gallery

    root = tmp_path_factory.mktemp("references")
    for colour in COLOURS:
        folder = root / "Reference_Images" / f"P-{colour}"
        folder.mkdir(parents=True)
        picture = np.full((64, 64, 3), 127, np.uint8)
        cv2.circle(picture, (32, 32), 26, COLOURS[colour], -1)
        cv2.imwrite(str(folder / "1.png"), picture[..., ::-1])
    target = root / "colours.gallery"
    assert build_gallery(colour_bundle, root / "Reference_Images", target) == 3
    return target


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
    started: list[NodeProcess] = []

    def start(module: str, *, namespace: str = "/perception", **parameters: Any) -> NodeProcess:
        started.append(NodeProcess(module, parameters, tmp_path_factory.mktemp("node"), namespace))
        return started[-1]

    yield start
    for node in started:
        node.kill()


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

    def wait(self, done: Callable[[], Any], timeout: float = 30.0, what: str = "") -> Any:
        """Run callbacks until `done()` is true; fails after the timeout."""
        end = time.monotonic() + timeout
        while not (result := done()):
            assert time.monotonic() < end, f"timed out waiting for {what or done}"
            self._executor.spin_once(timeout_sec=0.1)
        return result

    def collect(self, kind: Any, topic: str, profile: Any = 10) -> list[Any]:
        """A list that fills with the messages of a topic."""
        messages: list[Any] = []
        self.node.create_subscription(kind, topic, messages.append, profile)
        return messages

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

    def publisher(self, kind: Any, topic: str) -> Any:
        """A publisher of images that somebody already reads."""
        from mca_perception.ros.qos import IMAGE_OUTPUT

        publisher = self.node.create_publisher(kind, topic, IMAGE_OUTPUT)
        self.wait(publisher.get_subscription_count, what=f"a subscriber of {topic}")
        return publisher

    def heard(self, subscribers: int = 1) -> None:
        """Wait until the perception node knows this many subscribers of its objects."""
        self.perception(
            lambda facts: facts["state"] == "active" and int(facts["objects_subscribers"]) >= subscribers,
            f"{subscribers} subscribers of objects",
        )

    def call(self, kind: Any, name: str, timeout: float = 30.0, **fields: Any) -> Any:
        """Answer of a service."""
        client = self.node.create_client(kind, name)
        self.wait(client.service_is_ready, timeout, f"service {name}")
        future = client.call_async(kind.Request(**fields))
        self.wait(future.done, timeout, f"answer of {name}")
        self.node.destroy_client(client)
        return future.result()

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
    """A ROS node for all tests of a module, where fresh connections would take most of the time."""
    yield from _connect()
