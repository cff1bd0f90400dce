"""Power of candidates: what the tools print, and whose it is. The lines are those that the tools' manuals show."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mca_perception.cli.bench_measure import interleave
from mca_perception.cli.bench_power import PowerMeter, _watts_of_gpu, _watts_of_jetson

ORIN = (
    "RAM 4722/7620MB (lfb 24x2MB) SWAP 149/3810MB (cached 1MB) CPU [34%@1510,0%@1510] GR3D_FREQ 98% cpu@51.7C "
    "tj@53.1C VDD_IN 9104mW/8950mW VDD_CPU_GPU_CV 3800mW/3650mW VDD_SOC 1600mW/1590mW"
)
XAVIER = "RAM 2421/31918MB (lfb 6750x4MB) GR3D_FREQ 0% GPU 1000mW/900mW CPU 2000mW/1900mW SOC 500mW/500mW"
OLD = "RAM 1224/3964MB (lfb 4x4MB) IRAM 0/252kB(lfb 252kB) POM_5V_IN 2100/2100 POM_5V_GPU 0/0 POM_5V_CPU 400/400"


@pytest.mark.parametrize(
    ("read", "line", "watts"),
    [
        (_watts_of_jetson, ORIN, 9.104),
        (_watts_of_jetson, XAVIER, 3.5),
        (_watts_of_jetson, OLD, 2.1),
        (_watts_of_jetson, "RAM 4722/7620MB (lfb 24x2MB)", None),
        (_watts_of_gpu, "61.45", 61.45),
        (_watts_of_gpu, "[N/A]", None),
        (_watts_of_gpu, "", None),
    ],
)
def test_lines_of_the_tools(read, line: str, watts: float | None) -> None:
    assert read(line) == (None if watts is None else pytest.approx(watts))


def tool(folder: Path, name: str, lines: str) -> None:
    """A program that prints lines for ever, as the tools do."""
    path = folder / name
    path.write_text(f"#!/bin/sh\nwhile true; do {lines} sleep 0.02; done\n")
    path.chmod(0o755)


def test_power_is_added_to_the_candidates(tmp_path: Path, monkeypatch) -> None:
    tool(tmp_path, "nvidia-smi", "echo '[N/A]'; echo 50.0;")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with PowerMeter() as meter:
        while not meter._samples:
            time.sleep(0.01)
        found = interleave({"a": lambda: time.sleep(0.2)}, 3, images=2, meter=meter)
    assert meter.tool == "nvidia-smi"
    assert found["a"]["watts"] == 50.0
    assert found["a"]["joules_per_image"] == pytest.approx(50.0 / found["a"]["images_per_second"], abs=1e-3)
    assert meter.take("a", 1.0) == {}


def test_a_candidate_has_its_own_turns_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mca_perception.cli.bench_power.shutil.which", lambda name: None)
    with PowerMeter() as meter:
        for candidate, watts in (("a", 10.0), ("b", 30.0)):
            with meter.during(candidate):
                meter._samples.append((time.perf_counter(), watts))
        meter._samples.append((time.perf_counter(), 99.0))
    assert meter.take("a", 2.0) == {"watts": 10.0, "joules_per_image": 5.0}
    assert meter.take("b", 2.0)["watts"] == 30.0


def test_without_a_tool_there_are_no_figures(monkeypatch) -> None:
    monkeypatch.setattr("mca_perception.cli.bench_power.shutil.which", lambda name: None)
    with PowerMeter() as meter:
        found = interleave({"a": lambda: None}, 1, meter=meter)
    assert meter.tool is None
    assert "watts" not in found["a"]
