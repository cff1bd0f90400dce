"""Tables of the benchmark of training methods, and what they say about the published claims."""

from __future__ import annotations

import math
import statistics
from typing import Any

from mca_perception.cli import reports

TITLES = {
    "frozen": "no training, probe",
    "cross_entropy": "CE",
    "supcon": "SupCon, probe",
    "lacvit": "LaCViT",
    "clce": "CLCE",
    "clce_plain": "CLCE without hard-negative weights",
    "ce_supcon": "CE + SupCon",
    "scl_rhe": "SCL-RHE, probe",
    "clce_half": "CLCE, lambda 0.5",
    "clce_only": "CLCE, lambda 1, probe",
    "scl_rhe_trusting": "SCL-RHE expecting no errors, probe",
    "scl_rhe_doubting": "SCL-RHE expecting 10 % errors, probe",
}
REPORTED = (
    "top1",
    "probe_top1",
    "knn_top1",
    "5way_1shot",
    "5way_5shot",
    "gap",
    "auroc",
    "isotropy_unit",
    "margin",
)
# Published claim: figure, the method that should have more of it, and the one to compare with.
CLAIMS: dict[str, tuple[str, str, str]] = {
    "R1 CLCE above CE": ("top1", "clce", "cross_entropy"),
    "R2 hard-negative weights help": ("top1", "clce", "clce_plain"),
    "R3 CE + inner form equal to CE + outer form": ("top1", "clce_plain", "ce_supcon"),
    "R3 the same, 1-shot": ("5way_1shot", "clce_plain", "ce_supcon"),
    "R3 the same, 5-shot": ("5way_5shot", "clce_plain", "ce_supcon"),
    "R4 SupCon below CE": ("top1", "cross_entropy", "supcon"),
    "R5 lambda 0.9 above 0.5": ("top1", "clce", "clce_half"),
    "R5 lambda 0.9 above 1": ("top1", "clce", "clce_only"),
    "R6 CLCE above CE, 1-shot": ("5way_1shot", "clce", "cross_entropy"),
    "R6 CLCE above CE, 5-shot": ("5way_5shot", "clce", "cross_entropy"),
    "R7 larger gap, CLCE": ("gap", "clce", "cross_entropy"),
    "R7 higher isotropy of unit rows, CLCE": ("isotropy_unit", "clce", "cross_entropy"),
    "R7 larger gap, SupCon": ("gap", "supcon", "cross_entropy"),
    "R8 LaCViT above CE": ("top1", "lacvit", "cross_entropy"),
    "R11 SCL-RHE above CE": ("top1", "scl_rhe", "cross_entropy"),
    "R11, R13 SCL-RHE above SupCon": ("top1", "scl_rhe", "supcon"),
    "R15 expected errors 3.3 % above none": ("top1", "scl_rhe", "scl_rhe_trusting"),
    "R15 expected errors 3.3 % above 10 %": ("top1", "scl_rhe", "scl_rhe_doubting"),
}

Runs = dict[str, dict[str, Any]]


def summarise(runs: Runs) -> Runs:
    """Mean and standard error over seeds of every cell."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for key, figures in runs.items():
        cells.setdefault(key.rpartition("-seed")[0], []).append(figures)
    summary = {}
    for cell, done in cells.items():
        entry: dict[str, Any] = {"seeds": len(done)}
        for name in (*REPORTED, "5way_1shot_interval", "5way_5shot_interval", "isotropy_raw", "overlap",
                     "uniformity", "processor_ms_per_step"):  # fmt: skip
            values = [figures[name] for figures in done if name in figures]
            if values:
                error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
                entry[name] = {"mean": statistics.mean(values), "standard_error": error}
        summary[cell] = entry
    return summary


def markdown(summary: Runs) -> str:
    """The cells as a table, in per cent where it is an accuracy."""
    rows = []
    for cell, entry in summary.items():
        method, _, rest = cell.partition("-batch")
        batch, _, noise = rest.partition("-noise")
        values = [_cell(entry.get(name), 100 if "top1" in name or "shot" in name else 1) for name in REPORTED]
        rows.append((TITLES[method], batch, noise, entry["seeds"], *values))
    return reports.table(("method", "batch", "label errors", "seeds", *REPORTED), rows)


def _cell(figure: dict[str, Any] | None, factor: int) -> str:
    if figure is None:
        return "-"
    digits = 1 if factor == 100 else 3
    text = f"{factor * figure['mean']:.{digits}f}"
    error = figure["standard_error"]
    return text if error is None else f"{text} ± {factor * error:.{digits}f}"


def judge_claims(runs: Runs) -> list[dict[str, Any]]:
    """Difference of every claim and cell, paired by seed; with three seeds or more a paired t-test.

    The 90 % interval tells equality: two methods are equal within a margin, at 5 %, where it lies inside the margin.
    """
    from scipy.stats import ttest_rel

    judged = []
    cells = sorted({key.partition("-")[2].rpartition("-seed")[0] for key in runs})
    for claim, (figure, more, less) in CLAIMS.items():
        for cell in cells:
            names = [key for key in runs if key.startswith(f"{more}-{cell}-seed")]
            others = [name.replace(more, less, 1) for name in names]
            pairs = [
                (runs[a][figure], runs[b][figure]) for a, b in zip(names, others, strict=True) if b in runs
            ]
            if pairs:
                differences = [a - b for a, b in pairs]
                varies = len(pairs) > 2 and statistics.pstdev(differences) > 0
                test = ttest_rel(*zip(*pairs, strict=True)) if varies else None
                entry: dict[str, Any] = {"claim": claim, "cell": cell, "seeds": len(pairs)}
                entry["difference"] = statistics.mean(differences)
                entry["p"] = float(test.pvalue) if test else None
                interval = test.confidence_interval(0.9) if test else None
                entry["low"], entry["high"] = (
                    (float(interval.low), float(interval.high)) if interval else (None, None)
                )
                judged.append(entry)
    return judged


def tables(runs: Runs) -> str:
    """Everything in Markdown."""
    header = ("claim", "cell", "seeds", "difference", "p", "low", "high")
    claims = reports.table(header, [[entry[key] for key in header] for entry in judge_claims(runs)])
    return f"{markdown(summarise(runs))}\n{claims}"
