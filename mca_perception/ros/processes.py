"""Runs described nodes as child processes: output with prefixes or into files, clean stop, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import yaml

from mca_perception.ros.node_descriptions import OWN_PACKAGE, RESPAWN_DELAY_S, NodeDescription
from mca_perception.ros.respawns import Respawns
from mca_perception.ros.views import find_executable

__all__ = ["ProcessGroup", "RunningNode", "node_command"]

TAIL_LINES = 20
_POLL_S = 0.05
_STOP_STEPS = ((signal.SIGINT, 8.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))


def node_command(node: NodeDescription, parameter_file: Path) -> list[str]:
    """Command line of a node; writes its parameters to ``parameter_file``."""
    content = {node.full_name: {"ros__parameters": node.parameters}}
    parameter_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    if node.package == OWN_PACKAGE:
        program = [sys.executable, "-m", f"mca_perception.ros.{node.executable}"]
    else:
        program = [str(find_executable(node.package, node.executable) or node.executable)]
    command = [*program, *node.arguments, "--ros-args"]
    rules = [f"__ns:={node.namespace}", f"__node:={node.name}"]
    rules += [f"{old}:={new}" for old, new in node.remappings]
    for rule in rules:
        command += ["--remap", rule]
    return [*command, "--params-file", str(parameter_file)]


@dataclass
class RunningNode:
    """A started process and the last lines it wrote; its name is unique in the group."""

    name: str
    description: NodeDescription
    process: subprocess.Popen[str]
    tail: deque[str]
    reader: threading.Thread
    respawns: Respawns
    direct: bool = False
    left: bool = False  # the others go on without it, and that was said

    def describe_end(self) -> str:
        """How the process ended."""
        code = self.process.returncode
        return f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"

    def describe_failure(self) -> str:
        """Which process ended how, and its last lines."""
        lines = "\n".join(f"  {line}" for line in self.tail) or "  (no output)"
        return f"process {self.name!r} {self.describe_end()}; its last lines:\n{lines}"


class ProcessGroup:
    """Child processes that live and end together. Use it in a ``with`` statement.

    Example:
        >>> with ProcessGroup() as group:  # doctest: +SKIP
        ...     group.start(armbench({"source": "images"}))
        ...     group.wait()
    """

    def __init__(
        self,
        *,
        on_line: Callable[[str, str], None] = lambda name, line: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Create an empty group.

        Args:
            on_line: called with the node's name and each line it writes, from several threads. Lines at which it
                fails are counted; when it raises BrokenPipeError, :meth:`wait` does.
            environment: of the children; this process' own when not given.
        """
        self.nodes: list[RunningNode] = []
        self._on_line = on_line
        self._lock = threading.Lock()
        self._lost_lines: Counter[str] = Counter()
        self._has_reader = True
        self._environment = dict(environment if environment is not None else os.environ)
        self._environment["PYTHONUNBUFFERED"] = "1"
        self._parameters = tempfile.TemporaryDirectory(prefix="mca-")

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._parameters.cleanup()

    def start(self, nodes: Sequence[NodeDescription], *, terminal: Sequence[str] = ()) -> None:
        """Start nodes.

        Args:
            nodes: what to start.
            terminal: names of nodes whose standard output is this process' own, so that they can draw on a
            terminal;
                what they log is still read.
        """
        names = Counter(node.name for node in nodes)
        for node in nodes:
            name = node.name if names[node.name] == 1 else node.full_name.lstrip("/")
            index = len(self.nodes)
            self.nodes.append(self._start(name, node, index, Respawns(node), direct=name in terminal))

    def _start(
        self, name: str, node: NodeDescription, index: int, respawns: Respawns, *, direct: bool
    ) -> RunningNode:
        process = subprocess.Popen(
            node_command(node, Path(self._parameters.name, f"{index}.yaml")),
            stdin=subprocess.DEVNULL,
            stdout=None if direct else subprocess.PIPE,
            stderr=subprocess.PIPE if direct else subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches this process only, which then stops them in order
        )
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        stream = process.stderr if direct else process.stdout
        assert stream is not None
        reader = threading.Thread(target=self._read, args=(name, stream, tail), daemon=True)
        reader.start()
        return RunningNode(name, node, process, tail, reader, respawns, direct)

    def _read(self, name: str, stream: IO[str], tail: deque[str]) -> None:
        for line in stream:
            tail.append(line.rstrip("\n"))
            self._tell(name, tail[-1])

    def _tell(self, name: str, line: str) -> None:
        """Hand a line on. Never raises: a node whose output nobody takes stands still once its pipe is full."""
        try:
            self._on_line(name, line)
        except BrokenPipeError:
            self._has_reader = False
        except Exception as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            with self._lock:
                self._lost_lines[reason] += 1

    def describe_losses(self) -> str:
        """How many lines ``on_line`` could not take, by reason; empty when it took all."""
        with self._lock:
            return ", ".join(
                f"{count} lines of the nodes were not written ({reason})"
                for reason, count in self._lost_lines.items()
            )

    def wait(self, timeout_s: float | None = None) -> RunningNode | None:
        """Wait until a process fails, or one that ends the launch ends. Those that may be are started again.

        Args:
            timeout_s: seconds; ``None`` waits as long as it takes.

        Returns:
            That process; ``None`` after the timeout, or when all processes have ended well.

        Raises:
            BrokenPipeError: nobody takes the lines of the nodes any more.
        """
        end = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while time.monotonic() < end:
            ended = [node for node in self.nodes if node.process.poll() is not None]
            for node in [node for node in ended if self._respawn(node)]:
                ended.remove(node)
            for node in ended:
                if node.description.optional:
                    self._leave(node)
                elif node.process.returncode != 0 or node.description.ends_launch:
                    node.reader.join(timeout=1.0)
                    return node
            if len(ended) == len(self.nodes):
                return None
            if not self._has_reader:
                raise BrokenPipeError("nobody reads the output of the nodes")
            time.sleep(_POLL_S)
        return None

    def _respawn(self, node: RunningNode) -> bool:
        """Start a node again that a signal has ended; returns whether that was done."""
        code = node.process.returncode
        if not node.respawns.allow(code):
            return False
        node.reader.join(timeout=1.0)
        self._tell(node.name, f"was ended by signal {-code} and is started again")
        time.sleep(RESPAWN_DELAY_S)
        index = self.nodes.index(node)
        again = self._start(node.name, node.description, index, node.respawns, direct=node.direct)
        self.nodes[index] = again
        return True

    def _leave(self, node: RunningNode) -> None:
        """Say once that the others go on without a node."""
        if not node.left:
            node.left = True
            node.reader.join(timeout=1.0)
            self._tell(node.name, f"{node.describe_end()}; the other nodes go on")

    def stop(self) -> None:
        """End all processes: politely first, then firmly."""
        for number, patience_s in _STOP_STEPS:
            running = [node for node in self.nodes if node.process.poll() is None]
            for node in running:
                node.process.send_signal(number)
            end = time.monotonic() + patience_s
            for node in running:
                try:
                    node.process.wait(max(0.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue
        for node in self.nodes:
            node.reader.join(timeout=1.0)
