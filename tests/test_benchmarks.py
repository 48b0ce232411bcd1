"""Every benchmark starts, and its last line names its figures; what they are is not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

FIGURES = {
    "backprop_pipeline": {"seconds", "megabytes"},
    "byte_lm": {"twin", "2 blocks", "4 blocks"},
    "chapter_length": {"accuracy", "speedup", "megabytes"},
    "conv_step": {"onward_vs_local", "onward_vs_backprop", "onward_vs_local_with_muon"},
    "ecg": {"error", "macro_f1", "sensitivity S", "predictivity S", "error_of_always_n"},
    "emulated_ranks": {
        "speedup",
        "ideal",
        "fraction_of_ideal",
        "schedule_efficiency",
        "calibration",
        "load",
    },
    "exits": {
        "error_increase",
        "macs_ratio",
        "latency_ratio_batch1",
        "mean_time_ratio_batch1",
        "throughput_ratio_batch1024",
        "sweep_macs_ratio",
        "guarantee_kept",
        "onnx_other_exits",
        "int8_error_increase",
        "ucb_net_macs_saved",
        "fixed_sequence_violations",
        "expectation_risk",
    },
    "estimator_checks": {"passed", "failed", "skipped"},
    "fuzz": {"inputs", "crashes"},
    "gpu": {"stream again", "dense, onward, ms", "digits, one-pass"},
    "graphs": {"sf", "backprop"},
    "graph_speed": {"sf_ms", "backprop_times_sf", "plain_times_sf", "sf_mb", "plain_mb"},
    "hint_age": {"chapters", "mini_batches"},
    "links": {"seconds", "megabytes", "delayed", "worst_error"},
    "federated": {"digits_pooled", "digits_iid", "digits_class"},
    "larger_than_memory": {"ratio", "from_file", "from_memory", "peak", "limit", "accuracy"},
    "memory_limit": {"refused", "limit", "worst_error"},
    "methods": {"one-pass", "pff", "backprop"},
    "mnist": {"one-pass", "hinton", "pff-adaptive-goodness", "pff-random-softmax", "backprop"},
    "raw_data": {"wine, hinton", "breast cancer, pff"},
    "same_weights": {"pff adaptive goodness"},
    "simulation": {"worst_error", "ranks_4096_seconds"},
    "soak": {
        "faults",
        "identical",
        "recovery_seconds_median",
        "recovery_seconds_worst",
        "checkpoint_cost",
    },
    "papers": {"accuracy", "pflop"},
    "start_up": {"help", "wrong_flag", "import_ratio", "processes"},
    "step_speed": {
        "one_pass_vs_fp32_ff",
        "one_pass_vs_bf16_backprop",
        "two_pass_vs_fp32_ff",
        "times_floor",
    },
    "traffic": {"all-layers"},
    "vision": {"accuracy", "pflop"},
}


LONG = {
    "backprop_pipeline",
    "byte_lm",
    "chapter_length",
    "conv_step",
    "ecg",
    "emulated_ranks",
    "estimator_checks",
    "exits",
    "federated",
    "gpu",
    "graph_speed",
    "graphs",
    "hint_age",
    "links",
    "larger_than_memory",
    "memory_limit",
    "methods",
    "mnist",
    "papers",
    "raw_data",
    "same_weights",
    "simulation",
    "soak",
    "start_up",
    "step_speed",
    "traffic",
    "vision",
}
"""Those that take ten seconds or more, or measure what other tests look at."""

SCRIPTS = {path.stem for path in BENCHMARKS.glob("*.py")} - {
    "common",
    "control_groups",
    "convert_graphs",
    "exit_splits",
    "exit_tables",
    "hosts",
    "size",
    "versions",
}
"""All benchmarks that measure something."""


@pytest.mark.distributed
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in sorted(SCRIPTS)]
)
def test_a_benchmark_ends_with_a_line_of_its_figures(name, tmp_path):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--smoke", "--out", str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    if "skipped" in figures:
        pytest.skip(figures["skipped"])
    assert FIGURES[name] <= figures.keys()
    assert figures["form"] == "smoke"


MODULE = '''"""Doubles."""

MOST = 3
"""The most that is doubled."""


def double(x):
    """Return twice x."""
    if x > MOST: return x
    return 2 * x; pass
'''


def size(*arguments):
    command = [sys.executable, str(BENCHMARKS / "size.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_size_counts_statements_without_docstrings_recipes_and_the_command(tmp_path):
    for name in ("one.py", "part/two.py", "recipes.py", "recipes/pff.py", "cli/main.py"):
        path = tmp_path / "onward" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MODULE)

    done = size("--root", tmp_path, "--json", tmp_path / "size.json")

    found = json.loads((tmp_path / "size.json").read_text())
    assert found == {"statements": 12, "modules": {"one.py": 6, "part/two.py": 6}}
    assert "12" in done.stdout.splitlines()[-2]


def test_size_refuses_a_folder_without_the_library(tmp_path):
    done = size("--root", tmp_path)

    assert done.returncode == 2
    assert "There is no package onward in" in done.stderr


@pytest.mark.slow
def test_two_versions_are_compared_figure_by_figure():
    root = BENCHMARKS.parent
    script = [sys.executable, str(BENCHMARKS / "versions.py"), "step_speed", "--old", str(root)]

    done = subprocess.run(
        [*script, "--pairs", "2", "--form", "smoke"], capture_output=True, text=True, check=True
    )

    found = json.loads(done.stdout.splitlines()[-1])
    assert "one_pass_vs_fp32_ff 100" in found
    assert all(ratio > 0 for name, ratio in found.items() if name != "form")
