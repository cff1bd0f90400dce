"""Minutes at capacity with disturbances: nothing may leak, no frame may be lost without a cause, no state forgotten.

A camera sends images faster than the node can work (policy ``freshest``). In turn, every few seconds: another model is
loaded (the bundle and a copy of it), parameters change, the camera is killed and started again, the node is deactivated
and activated. Fails (exit code 1) when the memory has grown by more than ``--growth`` (in runs of 5 minutes and
more), when frames are unaccounted for (received = processed + dropped by cause), or when a change was refused.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from ros import SIZES, SUPPORT, running
from support.ros_listener import usage

from mca_perception.cli import reports
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.ros.engine import bundle_folder
from mca_perception.ros.transport import prepare_process

DOMAIN = 79
NAMESPACE = "/soak"
CALL_S = 120.0
WARM_SHARE = 0.2
GROWTH_MINUTES = 5.0
"""A shorter run is still filling its caches."""


class Operator:
    """Calls services of the node and reads its diagnostics."""

    def __init__(self) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor

        from mca_perception.ros import qos
        from mca_perception.ros.diagnostics import read_status

        rclpy.init(args=[])
        self.node = rclpy.create_node("soak_operator")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self.facts: dict[str, str] = {}

        def hear(array: Any) -> None:
            self.facts = read_status(array, NAMESPACE, "perception") or self.facts

        self.node.create_subscription(DiagnosticArray, "/diagnostics", hear, qos.DIAGNOSTICS)

    def spin(self, seconds: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Run callbacks until ``done``; whether it was, in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if done():
                return True
            self._executor.spin_once(timeout_sec=0.2)
        return done()

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        """Answer of a service; None after two minutes."""
        client = self.node.create_client(kind, f"{NAMESPACE}/{name}")
        self.spin(CALL_S, client.service_is_ready)
        future = client.call_async(kind.Request(**fields))
        self.spin(CALL_S, future.done)
        self.node.destroy_client(client)
        return future.result() if future.done() else None


def main() -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--model", default="models/nano")
    parser.add_argument("--size", choices=SIZES, default="640x480")
    parser.add_argument("--rate-hz", type=float, default=30.0)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two disturbances")
    parser.add_argument("--growth", type=float, default=0.02, help="share by which the memory may grow")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    os.environ["ROS_DOMAIN_ID"] = str(DOMAIN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the clean-up of the processes
    prepare_process()
    with tempfile.TemporaryDirectory(prefix="mca-soak-") as folder:
        model = Path(bundle_folder(options.model)).resolve()
        copy = Path(shutil.copytree(model, Path(folder) / "copy"))
        facts = soak(options, model, copy)
    facts = {**reports.environment(), "model": reports.model_facts(ModelBundle.open(model)), **facts}
    options.out.mkdir(parents=True, exist_ok=True)
    reports.write_json(options.out / f"ros-soak-{reports.device_slug(facts)}.json", facts)
    print({name: facts[name] for name in ("problems", "disturbances", "frames", "rss_mib")})
    return 1 if facts["problems"] else 0


def start_camera(options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A camera that sends until it is killed."""
    command = [sys.executable, str(SUPPORT / "ros_camera.py"), f"{NAMESPACE}/image"]
    command += [*map(str, (*SIZES[options.size], "raw", 10**8, options.rate_hz))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def kill(camera: subprocess.Popen[bytes]) -> None:
    """Kill the camera as a crash does, and remove the shared memory that it leaves behind: 130 MiB each time."""
    camera.kill()
    camera.wait()
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    if (tool := shutil.which("fastdds", path=paths)) is not None:
        subprocess.run(
            [tool, "shm", "clean"], env={**os.environ, "PATH": paths}, stdout=subprocess.DEVNULL, check=False
        )


def soak(options: argparse.Namespace, model: Path, copy: Path) -> dict[str, Any]:
    """Disturb the node for some minutes; what was found."""
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from mca_perception_msgs.srv import LoadModel
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    operator, problems = Operator(), []
    counts: dict[str, int] = {}
    camera = start_camera(options)
    folders, thresholds = cycle([copy, model]), cycle([0.9, -1.0])

    def load(_: Any) -> str:
        answer = operator.call(LoadModel, "load_model", path=str(next(folders)))
        return "" if answer is not None and answer.success else f"load_model: {answer and answer.message}"

    def change(_: Any) -> str:
        values = [Parameter("score_threshold", value=next(thresholds)), Parameter("top_k", value=3)]
        answer = operator.call(
            SetParameters, "perception/set_parameters", parameters=[v.to_parameter_msg() for v in values]
        )
        return (
            "" if answer is not None and all(r.successful for r in answer.results) else "parameters refused"
        )

    def kill_camera(_: Any) -> str:
        nonlocal camera
        kill(camera)
        camera = start_camera(options)
        return ""

    def pause_node(_: Any) -> str:
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            answer = operator.call(
                ChangeState, "perception/change_state", transition=Transition(id=transition)
            )
            if answer is None or not answer.success:
                return f"transition {transition} failed"
        return ""

    resident: list[float] = []
    with running("ours", model, NAMESPACE, "freshest") as node, ExitStack() as at_the_end:
        at_the_end.callback(lambda: kill(camera))
        if not operator.spin(90, lambda: int(operator.facts.get("frames_processed", 0)) > 3):
            return {"problems": ["no frame was processed"], "disturbances": {}, "frames": {}, "rss_mib": {}}
        end = time.monotonic() + 60 * options.minutes
        for disturb in cycle((load, change, kill_camera, pause_node)):
            if time.monotonic() >= end or node.poll() is not None:
                break
            problem = disturb(None)
            counts[disturb.__name__] = counts.get(disturb.__name__, 0) + 1
            problems += [problem] if problem else []
            operator.spin(options.pause)
            resident.append(usage(node.pid)[1])
        kill(camera)
        operator.spin(5.0)
        if node.poll() is not None:
            problems.append(f"the node ended with code {node.returncode}")
        elif operator.facts.get("state") != "active":
            problems.append(f"the node is {operator.facts.get('state')}")
    found = {
        name: int(operator.facts.get(f"frames_{name}", 0)) for name in ("received", "processed", "dropped")
    }
    missing = found["received"] - found["processed"] - found["dropped"]
    if missing:
        problems.append(f"{missing} frames are unaccounted for")
    warm = resident[int(len(resident) * WARM_SHARE) :]
    part = max(1, len(warm) // 4)
    first, last = (float(np.median(values)) if values else 0.0 for values in (warm[:part], warm[-part:]))
    growth = last / first - 1 if first else 0.0
    if growth > options.growth and options.minutes >= GROWTH_MINUTES:
        problems.append(f"the memory grew by {growth:.1%}")
    drops = {name: int(value) for name, value in operator.facts.items() if name.startswith("dropped/")}
    return {
        "minutes": options.minutes,
        "problems": problems,
        "disturbances": counts,
        "frames": {**found, **drops},
        "rss_mib": {"first": round(first, 1), "last": round(last, 1), "growth": round(growth, 4)},
    }


if __name__ == "__main__":
    sys.exit(main())
