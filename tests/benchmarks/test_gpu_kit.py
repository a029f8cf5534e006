"""The runner of `make gpu`: what is done is kept, whatever other parts do; and all of it on a CPU, at small sizes."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

ROOT = Path(__file__).parents[2]

STUB = """
import json, subprocess, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
def write(value, met):
    goals = [{"text": "is one", "measured": str(value), "met": met}]
    section = {"title": "A stub", "text": "On " + options["--device"], "tables": [[{"value": value}]], "goals": goals}
    open(options["--out"], "w").write(json.dumps(section))
"""
FAILS = STUB + "write(2, True)\nprint('first'); print('50%\\r100%\\rthe cause')\nsys.exit(3)"
HANGS = (
    STUB + "write(3, True)\nchild = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
    "open('FILE', 'w').write(str(child.pid))\ntime.sleep(60)"
)


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("gpu.__main__")
    monkeypatch.setattr(module, "LOGS", tmp_path / "logs")
    yield module


def run(kit: ModuleType, out: Path, **sources: str) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    parts = {
        name: kit.Part(
            what=f"the stub {name}", seconds=1.2 if name == "hangs" else 20, command=(sys.executable, "-c", source)
        )
        for name, source in sources.items()
    }
    return kit.run_parts(parts, device="cpu", out=out, order=("good", "fails", "hangs"), say=said.append), said


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_every_part_keeps_what_it_had(kit: ModuleType, tmp_path: Path) -> None:
    out, child = tmp_path / "out", tmp_path / "child"
    hangs = HANGS.replace("FILE", str(child))
    entries, said = run(kit, out, hangs=hangs, fails=FAILS, good=STUB + "write(1, True)")
    assert {name: entry.status for name, entry in entries.items()} == {
        "hangs": "stopped",
        "fails": "failed",
        "good": "done",
    }
    assert [entry.is_well for entry in entries.values()] == [True, False, True]
    assert not is_alive(int(child.read_text())), "what a part started outlives it"
    document = json.loads((out / "RESULTS_GPU.json").read_bytes())["parts"]
    assert list(document) == ["good", "fails", "hangs"]
    assert [part["section"]["tables"] for part in document.values()] == [[[{"value": value}]] for value in (1, 2, 3)]
    page = (out / "RESULTS_GPU.md").read_text()
    assert "| [good](#a-stub-good) | the stub good | cpu | done in 0 s, 1 of 1 checks met |" in page
    assert "**failed in" in page and "exit code 3\nfirst\nthe cause\n" in page
    assert "stopped at its limit of 1 s, what it had is kept" in page and "| 3 |" in page
    assert any(str(tmp_path / "logs" / "fails.log") in line for line in said)


def test_a_second_run_keeps_the_parts_that_are_not_run_again(
    kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(kit, out, good=STUB + "write(1, True)", fails=FAILS)
    entries, _ = run(kit, out, fails=STUB + "write(5, False)")
    assert [(name, entry.status, entry.missed) for name, entry in entries.items()] == [
        ("good", "done", 0),
        ("fails", "done", 1),
    ]
    assert not entries["fails"].is_well
    monkeypatch.setattr(kit, "TOTAL_SECONDS", 0.1)  # no time left: nothing is lost, and what is new says so
    entries, said = run(kit, out, good=STUB + "write(9, True)", hangs=STUB)
    assert {name: entry.status for name, entry in entries.items()} == {
        "good": "done",
        "fails": "done",
        "hangs": "not started",
    }
    page = (out / "RESULTS_GPU.md").read_text()
    assert "| 1 |" in page and "| 5 |" in page and "| 9 |" not in page
    assert "**missed**: is one: 5" in page and "**not started: no time left**" in page
    assert any("what an earlier run found stays" in line for line in said)


def test_a_difference_is_that_of_the_worst_part_and_no_number_is_none(kit: ModuleType) -> None:
    """By hand: norms 5 and 13 become 5 and 12.5, and the second vector moves by (0, 0.5, 0)."""
    agreement = importlib.import_module("gpu.agreement")

    def step(loss: float, middle: float, probability: float) -> Any:
        gradients = {"clip": torch.tensor([3.0, 4.0]), "head": torch.tensor([0.0, middle, 0.0])}
        return agreement.Step({"loss": loss}, gradients, torch.tensor([[0.25, probability]]))

    found = agreement.difference(step(2.0, 13.0, 0.5), step(2.1, 12.5, 0.75))
    assert (found.loss, found.norm) == (pytest.approx(0.05), pytest.approx(0.5 / 13))
    assert (found.gradient, found.probability) == (pytest.approx(0.5 / 13), 0.25)
    seen = agreement.Difference(0.02, 0.001, 0.1, 0.1)
    assert [goal.met for goal in agreement.judge("fp32", seen, found)] == [True, False, True, True]  # five times `seen`
    nan = agreement.difference(step(2.0, 13.0, 0.5), step(2.0, float("nan"), 0.5))
    assert [goal.met for goal in agreement.judge("fp32", seen, nan)] == [True, False, False, True]


@pytest.mark.torture
def test_the_whole_kit_runs_on_a_cpu(tmp_path: Path) -> None:
    """Every part ends or is cut short, none fails; and the tests that need a GPU pass where a CPU takes its place."""
    command = [sys.executable, "benchmarks/gpu/start.py", "--folder", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--minutes", "60"],
        cwd=ROOT,
        check=False,
        env=os.environ | {"PHYSSEG_GPU_TESTS": "cpu"},
    )
    parts = json.loads((tmp_path / "RESULTS_GPU.json").read_bytes())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(parts, "done")
    assert len(parts) == 9
    assert done.returncode == 0
    assert all(part["section"]["tables"][0] for part in parts.values())
