"""Finds out what this machine and this environment offer; `mca doctor` shows it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from mca_perception import __version__
from mca_perception.errors import McaError
from mca_perception.resources import resource_path

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "pydantic",
    "pycocotools",
    "rosbags",
    "safetensors",
    "torch",
    "onnx",
)
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve")
GPU_PROVIDERS = {"CUDAExecutionProvider", "TensorrtExecutionProvider", "ROCMExecutionProvider"}
DEFAULT_MODEL = "models/nano"
MODEL_REMEDY = f"git checkout -- {DEFAULT_MODEL}, or train it: recipes/"
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Feature:
    """Something a user may want to do.

    Attributes:
        purpose: what it is for.
        modules: what must be importable.
        install: command that brings what is missing.
        needs_model: whether the shipped model must be sound.
        needs_gpu: whether ONNX Runtime must be able to use a GPU.
    """

    purpose: str
    modules: tuple[str, ...]
    install: str
    needs_model: bool = False
    needs_gpu: bool = False


def _extra(name: str) -> str:
    return f"pip install -c constraints.txt -e '.[{name}]'"


RUNTIME = ("numpy", "cv2", "onnxruntime", "pydantic")
ROS = ("rclpy", "vision_msgs", "mca_perception_msgs")
FEATURES = {
    "library": Feature("perceive images from Python", RUNTIME, "pip install -e .", needs_model=True),
    "nodes": Feature("run the ROS 2 nodes, make demo", (*RUNTIME, *ROS), "make demo", needs_model=True),
    "launch": Feature(
        "ros2 launch (elsewhere: mca up)",
        (*ROS, "launch", "launch_ros"),
        "a ROS 2 installation: sudo apt install ros-$ROS_DISTRO-ros2launch",
    ),
    "bags": Feature("read rosbag2 and mcap files", ("rosbags",), "pip install -e ."),
    "training": Feature("train and export", ("torch", "onnx", "onnxscript", "matplotlib"), _extra("train")),
    "tests": Feature("make test", ("pytest", "xdist", "pytest_timeout", "hypothesis", "torch"), "make test"),
    "view": Feature("look at the nodes in a browser: mca view", (*ROS, "foxglove"), _extra("foxglove")),
    "tracking": Feature("ids of objects that last over frames", (*ROS, "scipy"), _extra("tracking")),
    "openvino": Feature("run models in OpenVINO", ("openvino",), _extra("openvino")),
    "triton": Feature("run models on a Triton server", ("tritonclient", "grpc"), _extra("triton")),
    "lora": Feature("train with LoRA", ("torch", "peft"), _extra("lora")),
    "backbones": Feature(
        "train on other backbones", ("timm", "transformers", "open_clip"), _extra("backbones")
    ),
    "crisis": Feature("crisis classification", (*RUNTIME, "sentencepiece"), "pip install -e ."),
    "crisis training": Feature("train the linear crisis models", ("sklearn",), _extra("crisis")),
    "retrieval": Feature("document-to-image retrieval", (*RUNTIME, "sentencepiece"), "pip install -e ."),
    "retrieval back ends": Feature(
        "faiss, Parquet sources, ranking metrics", ("faiss", "ir_measures", "pyarrow"), _extra("retrieval")
    ),
    "qdrant": Feature("Qdrant as a back end of retrieval", ("qdrant_client",), _extra("qdrant")),
    "ray": Feature("index images on several machines", ("ray", "pyarrow"), _extra("ray")),
    "gpu": Feature("run models on a GPU", ("onnxruntime",), "docs/install.md, section GPU", needs_gpu=True),
}


@dataclass(frozen=True)
class RosState:
    """ROS 2 as this Python sees it; `problem` says why it cannot be used."""

    distribution: str | None = None
    source: str | None = None
    rmw: str | None = None
    fastdds: str | None = None
    messages: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class ModelState:
    """The shipped model bundle; `problem` says why it cannot be used."""

    path: str | None = None
    name: str | None = None
    fingerprint: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class FeatureState:
    """Whether a feature can be used, what is missing for it, and what brings that."""

    purpose: str
    ready: bool
    missing: list[str]
    install: str | None


@dataclass(frozen=True)
class Report:
    """Everything `mca doctor` tells."""

    version: str
    python: str
    executable: str
    system: str
    machine: str
    cpu: str
    cpu_count: int
    cpu_features: list[str]
    memory_gb: float
    disk_free_gb: float
    shared_memory_free_mb: int
    packages: dict[str, str | None]
    providers: list[str]
    sessions: str
    gpus: list[str]
    ros: RosState
    transport: str
    model: ModelState
    features: dict[str, FeatureState]

    def to_json(self) -> str:
        """The report as an indented JSON object."""
        return json.dumps(asdict(self), indent=2)


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _output(command: Sequence[str]) -> str:
    """Run a command and return what it prints, or an empty string when that fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def _processor() -> tuple[str, list[str]]:
    """Name of the processor and those of its features that decide the speed of networks."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), []
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return (name[1] if name else platform.machine()), [flag for flag in CPU_FEATURES if flag in present]


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _gpus() -> list[str]:
    """NVIDIA GPUs as `name, driver, memory`."""
    query = "--query-gpu=name,driver_version,memory.total"
    return _output(["nvidia-smi", query, "--format=csv,noheader"]).splitlines()


def _sessions() -> str:
    """What runs models when nobody says, and why not something faster."""
    try:
        from mca_perception.deploy.sessions import choose
    except ModuleNotFoundError as error:
        return f"none: {error.name} is not installed"
    return str(choose())


def _providers() -> list[str]:
    """Execution providers of ONNX Runtime, in the order in which it prefers them."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _ros_distribution() -> str | None:
    """Name of the ROS 2 distribution: what was sourced, else what the wheels are of."""
    if "ROS_DISTRO" in os.environ:
        return os.environ["ROS_DISTRO"]
    names = (re.fullmatch(r"ros-(\w+)-rclpy", d.metadata["Name"] or "") for d in metadata.distributions())
    return next((match[1] for match in names if match), None)


def _prefixes() -> Iterator[Path]:
    """Yield the prefixes ROS packages may be installed in."""
    yield from (Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry)
    yield Path(sys.prefix)


def _fastdds_version() -> str | None:
    for prefix in _prefixes():
        for file in sorted(prefix.glob("share/fast*/cmake/fast*-config-version.cmake")):
            version = re.search(r'PACKAGE_VERSION "?([\d.]+)', file.read_text(encoding="utf-8"))
            if "fastcdr" not in file.name and version:
                return version[1]
    return None


def ros_state() -> RosState:
    """Try ROS 2 in a process of its own, so that a broken installation is reported and not fatal."""
    spec = find_spec("rclpy")
    if spec is None or spec.origin is None:
        return RosState(problem="rclpy is not installed")
    library = next((path for path in Path(spec.origin).parents if path.name == "lib"), Path(spec.origin))
    prefix = library.parent
    probe = (
        "import rclpy; print(rclpy.get_rmw_implementation_identifier())\n"
        "import vision_msgs.msg; print(vision_msgs.__file__)\n"
        "import mca_perception_msgs.msg; print(mca_perception_msgs.__file__)\n"
    )
    command = [sys.executable, "-c", probe]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    lines = run.stdout.splitlines()
    wheels = prefix == Path(sys.prefix)
    return RosState(
        distribution=_ros_distribution(),
        source=f"wheels in {prefix}" if wheels else str(prefix),
        rmw=lines[0] if lines else None,
        fastdds=_fastdds_version(),
        messages={name: str(Path(file).parent) for name, file in zip(ROS[1:], lines[1:], strict=False)},
        problem=None if run.returncode == 0 else run.stderr.strip().splitlines()[-1],
    )


def transport_state() -> str:
    """What the nodes choose for large messages, asked of the nodes' own code in a process of its own."""
    probe = "from mca_perception.ros.transport import configure_transport; print(configure_transport())"
    return _output([sys.executable, "-c", probe]).removeprefix("transport: ") or "unknown"


def model_state(name: str = DEFAULT_MODEL) -> ModelState:
    """Open a model bundle and compare the hash of every file.

    Args:
        name: folder, or name of a shipped bundle such as `models/nano`.
    """
    from mca_perception.deploy.bundle import ModelBundle

    try:
        path = Path(name) if Path(name).is_dir() else resource_path(name)
        bundle = ModelBundle.open(path)
    except McaError as error:
        return ModelState(problem=str(error))
    return ModelState(str(path), bundle.manifest.name, bundle.fingerprint)


def feature_state(
    feature: Feature, *, providers: Sequence[str], ros: RosState, model: ModelState
) -> FeatureState:
    """Check what a feature needs.

    Args:
        feature: the feature.
        providers: execution providers of ONNX Runtime.
        ros: state of ROS 2.
        model: state of the shipped model.
    """
    missing = [name for name in feature.modules if find_spec(name) is None]
    if not missing and "rclpy" in feature.modules and ros.problem:
        missing.append(f"a working ROS 2 ({ros.problem})")
    if feature.needs_gpu and not GPU_PROVIDERS & set(providers):
        missing.append("a GPU provider of onnxruntime")
    install = feature.install if missing else None
    if feature.needs_model and model.problem:
        missing.append(DEFAULT_MODEL)
        install = install or MODEL_REMEDY
    return FeatureState(feature.purpose, not missing, missing, install)


def examine() -> Report:
    """Gather the whole report; takes about a second."""
    cpu, cpu_features = _processor()
    providers, ros, model = _providers(), ros_state(), model_state()
    shared_memory = Path("/dev/shm")  # noqa: S108 (this is about the folder itself)
    return Report(
        version=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=cpu,
        cpu_count=os.cpu_count() or 1,
        cpu_features=cpu_features,
        memory_gb=round(_memory_gb(), 1),
        disk_free_gb=round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        shared_memory_free_mb=shutil.disk_usage(shared_memory).free >> 20 if shared_memory.is_dir() else 0,
        packages={name: version_of(name) for name in PACKAGES},
        providers=providers,
        sessions=_sessions(),
        gpus=_gpus(),
        ros=ros,
        transport=transport_state(),
        model=model,
        features={
            name: feature_state(feature, providers=providers, ros=ros, model=model)
            for name, feature in FEATURES.items()
        },
    )
