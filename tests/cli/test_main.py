"""The `mca` command line as a whole: quick help, examples, exit codes, missing extras."""

import json
import os
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from mca_perception import __version__
from mca_perception.cli import main as cli
from mca_perception.errors import SourceError

RUNNER = CliRunner()


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    script = (
        "import json, sys\n"
        "from mca_perception.cli.main import main\n"
        "sys.argv = ['mca', '--help']\n"
        "try: main()\n"
        "finally: print(json.dumps([m for m in ('numpy', 'cv2', 'onnxruntime', 'torch', 'rclpy')"
        " if m in sys.modules]))"
    )
    run = run_script(script)
    assert run.returncode == 0, run.stderr
    *help_lines, loaded = run.stdout.strip().splitlines()
    assert json.loads(loaded) == []
    for name in cli.COMMANDS:
        assert any(line.strip(" │").startswith(f"{name} ") for line in help_lines), name


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    result = RUNNER.invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0, result.output
    sub_commands = getattr(cli._load(name), "commands", {})
    texts = [result.output]
    texts += [RUNNER.invoke(cli.app, [name, sub, "--help"]).output for sub in sub_commands]
    assert any("Example" in text and f"mca {name}" in text for text in texts)


def test_version() -> None:
    result = RUNNER.invoke(cli.app, ["--version"])
    assert result.exit_code == 0
    assert result.output.strip() == f"mca_perception {__version__}"


def test_unknown_command_is_a_usage_error() -> None:
    assert RUNNER.invoke(cli.app, ["demmo"]).exit_code == 2


def test_bad_input_ends_in_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise SourceError("folder photos has no images: put some in")

    module = types.ModuleType("mca_perception.cli.demo")
    vars(module)["command"] = command
    monkeypatch.setitem(sys.modules, "mca_perception.cli.demo", module)
    monkeypatch.setattr(sys, "argv", ["mca", "demo"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: folder photos has no images: put some in\n"


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("torch", ".[train]"),
        ("torch.nn.functional", ".[train]"),
        ("rclpy", ".[ros]"),
        ("faiss", ".[retrieval]"),
        ("vision_msgs.msg", "make demo"),
        ("mca_perception_msgs", "make demo"),
    ],
)
def test_missing_module_names_its_remedy(module: str, expected: str) -> None:
    remedy = cli.missing_module_remedy(module)
    assert remedy is not None
    assert expected in remedy


def test_modules_that_nothing_brings_have_no_remedy() -> None:
    assert cli.missing_module_remedy("mca_perception.cli.nothing") is None


def test_a_command_without_its_extra_says_which_one_to_install(tmp_path: os.PathLike[str]) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from mca_perception.cli.main import main\n"
        "sys.argv = ['mca', 'train', 'recipes/segmentation_nano.yaml']\n"
        "main()"
    )
    run = run_script(script)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert run.stderr.startswith("error: ")
