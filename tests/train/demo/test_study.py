"""`physseg demo study`: what it makes is what the rows of the study train on; the rows are what docs/study.md says."""

import inspect
import re
import shlex
import tomllib
from functools import partial
from pathlib import Path

import pytest
from physseg.cli import app
from physseg.train.analysis.ablation import plan, read_table
from physseg.train.demo import study
from physseg.train.demo.chain import DemoError
from physseg.train.demo.regime import GROUPS, TEST_SPLITS, write_regime
from physseg.train.loop.loop import train
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from typer.testing import CliRunner

from .test_demo import Demos

CONFIG = Path(study.__file__).with_name("study.toml")


@pytest.mark.torture
def test_its_command_trains_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "write_regime", partial(write_regime, num_train=8, num_test=1))
    done = Demos(tmp_path)(tmp_path / "a b", command="study")
    assert done.exit_code == 0, done.output
    (said,) = re.findall(r"^next: physseg (analyse ablation study .*)$", done.stdout, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(said)
    assert [word for word in words if word.endswith(".parquet")] == [f"a b/{split}.parquet" for split in TEST_SPLITS]
    listed = CliRunner().invoke(app, [*words, "--dry-run"], catch_exceptions=False).stdout.splitlines()
    assert len(listed) == 5 * len(read_table("study").rows)

    runs = {run.row.name: run for run in plan(read_table("study"), words[3], out=Path("out"), seeds=[0], settings=[])}
    result = train(runs["scratch: +L^p +L^sac"].config, stop_at=1, progress=False)
    (entry,) = read_log(RunFolder(result.run).log_file, "step")
    assert {"loss/segmentation", "loss/structure/canny", "loss/alignment"} <= entry.keys()
    stored = {path.name for path in Path("a b/train.zarr").iterdir()}
    assert {name for run in runs.values() for name in run.config.model.structures} <= stored


def test_a_configuration_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("steps = 7")
    with pytest.raises(DemoError, match=r"config\.toml"):
        study.write_study(tmp_path, say=lambda _: None)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.toml", "steps = 7")]


def test_rows_change_what_their_names_say(tmp_path: Path) -> None:
    table = read_table("study")
    runs = {run.row.name: run.config for run in plan(table, CONFIG, out=tmp_path, seeds=[0], settings=[])}
    base = runs["baseline"]
    assert (base.clip_weights, base.model.finetune, base.optim.clip_scale) == ("scenes", "qv", 0.3)
    assert (base.losses.lambda_p, base.losses.lambda_sac, base.optim.max_gradient_norm) == (0, 0, 0.01)
    kinds = {name: (of.clip_weights, of.model.finetune, of.optim.clip_scale) for name, of in runs.items()}
    expected = {
        "0.01": ("scenes", "qv", 0.01),
        "all": ("scenes", "all", 0.3),
        "none": ("scenes", "none", 0.3),
        "scratch": (None, "all", 1.0),
    }
    for row in table.rows:
        kind, colon, _ = row.name.partition(": ")
        assert kinds[row.name] == (expected[kind] if colon else kinds["baseline"])
        if not row.name.endswith("baseline"):
            assert kinds[row.against] == kinds[row.name] and runs[row.against].steps == runs[row.name].steps
    weights = {name: (of.losses.lambda_p, of.losses.lambda_sac) for name, of in runs.items()}
    for kind in ("", "0.01: ", "all: ", "scratch: "):
        found = [weights[f"{kind}{name}"] for name in ("baseline", "+L^p", "+L^sac", "+L^p +L^sac")]
        assert found == [(0, 0), (1, 0), (0, 1), (1, 1)]
    for weight in (0.03, 0.1, 0.3):
        assert weights[f"+{weight} L^p"] == (weight, 0)
    assert [runs[f"+L^sac{form}"].losses.alignment_form for form in ("", ", soft_ce")] == ["infonce", "soft_ce"]
    for name in ("mask_edges", "sift", "superpoint", "semantic_edges", "canny, mask_edges, sift"):
        assert (weights[name], ", ".join(runs[name].model.structures)) == ((1, 0), name)
    assert {name for pair in table.harmonic for name in pair} <= set(TEST_SPLITS)


def test_the_page_has_the_numbers_of_today() -> None:
    page = " ".join((Path(__file__).parents[3] / "docs/study.md").read_text(encoding="utf-8").split())
    config, rows = tomllib.loads(CONFIG.read_text(encoding="utf-8")), read_table("study").rows
    scenes = inspect.signature(write_regime).parameters
    classes = sum(map(len, GROUPS.values()))
    for text in (
        f"study.toml), {len(rows)} of them",
        f"makes {5 * len(rows)} runs",
        f"on {scenes['num_train'].default} scenes",
        f"of {scenes['num_test'].default} scenes each, all with the same list of {classes} classes",
        f"{config['steps']} steps of {config['batch_size']} crops",
    ):
        assert text in page, text
