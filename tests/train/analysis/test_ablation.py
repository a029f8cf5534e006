"""The ablation: rows and seeds to runs, what is there is not computed again, and statistics by hand."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physseg.cli import app
from physseg.common.errors import ConfigError
from physseg.manifests.manifest import Manifest
from physseg.train.analysis.ablation import Score, command, plan, read_table
from physseg.train.analysis.ablation_table import cells, figure, markdown, student_interval, write_table
from physseg.train.config import load_config, recipes
from physseg.train.errors import AnalysisError
from physseg.train.evaluation.image_counts import ImageCounts, bootstrap_weights
from physseg.train.evaluation.metrics import ConfusionMatrix
from physseg.train.loop.loop import train
from physseg.train.runs import checkpoint
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from typer.testing import CliRunner

from ...forked import Forked, calling, wait_until
from ..loop.test_ranks import same_bits, weights

Write = Callable[..., Path]


def counts(*hits: list[int], true: int = 10) -> ImageCounts:
    """Images whose classes have `true` pixels each, predicted right or as nothing that counts."""
    found = np.array(hits, dtype=np.int64)
    return ImageCounts(
        image_ids=tuple(f"i{index}" for index in range(len(found))),
        hits=found,
        true=np.full_like(found, true),
        predicted=found,
    )


def evaluated(pillow: str = "11.0", **protocol: object) -> dict[str, Any]:
    """What a result says of how it was made."""
    source: dict[str, Any] = {"run": "out/ours/seed_1", "environment": {"pillow": pillow, "device": "cpu"}}
    return {**source, "protocol": {"windows": True, "templates": ["a {}"], "max_images": None} | protocol}


def scored(*sources: dict[str, Any]) -> list[Score]:
    """Two rows of two seeds with these sources, row by row; all images are half right."""
    images = counts([5, 5], [5, 5])
    places = [("base", 0), ("base", 1), ("ours", 0), ("ours", 1)]
    return [Score(*place, "val", 0.5, images, source) for place, source in zip(places, sources, strict=True)]


@pytest.mark.parametrize("name", ["table3", "table4"])
def test_the_papers_rows_build_for_every_recipe(name: str, tmp_path: Path) -> None:
    table = read_table(name)
    for recipe in recipes():
        runs = plan(table, recipe, out=tmp_path, seeds=[0, 7], settings=["data.store=s.zarr"])
        assert len(runs) == 2 * len(table.rows)
        assert len({run.config.run for run in runs}) == len(runs)
        first = runs[0].config
        assert (first.losses.lambda_p, first.losses.lambda_sac, first.model.structures) == (0, 0, ())
        assert {run.config.seed for run in runs} == {0, 7}
        assert (first.steps, first.batch_size, first.optim.learning_rate) == (80_000, 4, 2e-4)


def test_table_3_and_4_say_what_the_paper_says(tmp_path: Path) -> None:
    def rows(name: str) -> dict[str, tuple[float, float, tuple[str, ...]]]:
        runs = plan(read_table(name), "vit-b-16", out=tmp_path, seeds=[0], settings=[])
        return {
            run.row.name: (run.config.losses.lambda_p, run.config.losses.lambda_sac, run.config.model.structures)
            for run in runs
        }

    assert rows("table3") == {
        "baseline": (0, 0, ()),
        "+L^p": (1, 0, ("canny",)),
        "+L^sac": (0, 1, ()),
        "+L^p +L^sac": (1, 1, ("canny",)),
    }
    table4 = rows("table4")
    assert len(table4) == 8  # the baseline and seven variants
    assert table4["EdgeGT"] == (1, 0, ("mask_edges",))
    assert table4["all four"][2] == ("canny", "mask_edges", "sift", "superpoint")
    assert rows("edges") == {
        "baseline": (0, 0, ()),
        "mask_edges": (1, 0, ("mask_edges",)),
        "semantic_edges": (1, 0, ("semantic_edges",)),
        "both": (1, 0, ("mask_edges", "semantic_edges")),
    }


def test_a_run_is_a_train_command(tmp_path: Path) -> None:
    runs = plan(read_table("table3"), "vit-l-14", out=tmp_path / "a b", seeds=[3], settings=["steps=10"])
    assert command(runs[1], "vit-l-14", ["steps=10"]) == (
        f"physseg train vit-l-14 --out '{tmp_path}/a b/l-p/seed_3' "
        "--set steps=10 --set losses.lambda_p=1 --set losses.lambda_sac=0 --set seed=3"
    )


def test_rows_set_the_weight_and_the_settings_of_a_loss_of_another_package(
    install_losses: Callable[..., None], tmp_path: Path
) -> None:
    source = "class Mine:\n    def __init__(self, gamma: float = 2.0): ...\n    def __call__(self, *seen): ..."
    install_losses(source, mine="Mine")
    rows = {"off": "losses.mine.weight=0", "on": "losses.mine.weight=0.5", "steep": "losses.mine.gamma=4"}
    text = "\n".join(f'[[rows]]\nname = "{name}"\nset = ["{setting}"]' for name, setting in rows.items())
    (tmp_path / "table.toml").write_text(f'title = "Mine"\n{text}\n')
    table = read_table(str(tmp_path / "table.toml"))
    runs = plan(table, "vit-b-16", out=tmp_path, seeds=[0], settings=["losses.mine.gamma=3"])
    found = [[(one.weight, one.gamma) for one in run.config.losses.named.values()] for run in runs]  # type: ignore[attr-defined]
    assert found == [[], [(0.5, 3.0)], [(1.0, 4.0)]]
    (tmp_path / "table.toml").write_text(f'title = "Mine"\n{text.replace("mine.weight=0.5", "mein.weight=0.5")}\n')
    with pytest.raises(ConfigError, match=r"row 'on': --set losses\.mein\.weight=0\.5: unknown loss 'mein'"):
        plan(read_table(str(tmp_path / "table.toml")), "vit-b-16", out=tmp_path, seeds=[0], settings=[])


def test_cells_by_hand() -> None:
    """Two seeds: +0.1 and +0.2 of mIoU on every image, so no image can change the sign."""
    scores = []
    for seed, gain in ((0, 1), (1, 2)):
        for row, extra in (("base", 0), ("ours", gain)):
            images = counts([4 + extra, 6 + extra], [4 + extra, 6 + extra])
            miou = float(images.resampled_miou(np.ones((1, 2)))[0])
            assert miou == pytest.approx((4 + 6 + 2 * extra) / 20)
            scores.append(Score(row, seed, "val", miou, images, evaluated()))
    base, ours = cells(scores)
    assert base.difference is None
    assert ours.difference == pytest.approx(0.15)
    assert ours.difference_over_images == pytest.approx((0.15, 0.15))  # every sample of these equal images is the same
    low, high = student_interval(np.array([0.1, 0.2])) or (0.0, 0.0)
    assert ours.difference_over_seeds == pytest.approx((low, high))
    assert low == pytest.approx(0.15 - 12.706 * 0.05)
    text = markdown("T", [base, ours])
    assert "| base | 50.00% ± 0.00% |" in text
    assert "| +15.00 | -48.53 to +78.53 | +15.00 to +15.00 |" in text


def test_rows_compared_with_others_and_harmonic_means_by_hand() -> None:
    """One seed, two sets of two equal images: .8 and .2 have a harmonic mean of .32, 0 and 0 have 0."""
    scores = []
    for row, *hits in (("base", 8, 2), ("other", 0, 0), ("ours", 5, 5)):
        for data, hit in zip(("seen", "unseen"), hits, strict=True):
            images = counts([hit, hit], [hit, hit])
            scores.append(Score(row, 0, data, hit / 10, images, evaluated()))
    found = cells(scores, against={"ours": "other"}, harmonic=[("seen", "unseen")])
    assert [cell.data for cell in found[::3]] == ["seen", "unseen", "harmonic mean of seen and unseen"]
    assert [(cell.row, cell.against) for cell in found[:3]] == [("base", None), ("other", "base"), ("ours", "other")]
    both = found[6:]
    assert [cell.mean for cell in both] == pytest.approx([0.32, 0, 0.5])
    assert [cell.difference for cell in both] == [None, pytest.approx(-0.32), pytest.approx(0.5)]
    assert both[2].difference_over_images == pytest.approx((0.5, 0.5))
    text = markdown("T", found)
    assert "| harmonic mean of seen and unseen | mIoU | difference in points |" in text
    assert "| ours (against other) | 50.00% | +50.00 |" in text and "| other | 0.00% | -32.00 |" in text


def test_a_harmonic_mean_needs_both_sets() -> None:
    table = replace(read_table("table3"), harmonic=(("seen", "words"),))
    table.require(["words", "seen", "others"])
    with pytest.raises(AnalysisError, match=r"expected seen\.parquet and words\.parquet.*, got seen"):
        table.require(["seen"])


def test_images_of_both_sets_are_drawn_for_a_harmonic_mean() -> None:
    """Halves of the images are right in one row and none in the other, in two sets; another bootstrap says the same."""
    rng = np.random.default_rng(3)
    right = rng.random((2, 40)) < 0.5
    scores = [
        Score(row, 0, data, float(hits.mean()), counts(*(10 * hits[:, None]).astype(int).tolist()), evaluated())
        for row, all_hits in (("base", np.zeros((2, 40))), ("ours", right))
        for data, hits in zip(("a", "b"), all_hits, strict=True)
    ]
    low, high = cells(scores, harmonic=[("a", "b")])[-1].difference_over_images or (0, 0)
    drawn = [[hits[rng.integers(0, 40, 40)].mean() for hits in right] for _ in range(4000)]
    deviation = np.std([2 * a * b / (a + b) for a, b in drawn])
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.06)


def test_other_protocols_are_not_averaged_or_compared() -> None:
    same, whole, prompted = evaluated(), evaluated(windows=False), evaluated(templates=["{}"])
    old = {key: value for key, value in same.items() if key != "environment"}
    assert len(cells(scored(same, same, same, same))) == len(cells(scored(old, old, old, old))) == 2
    with pytest.raises(AnalysisError, match=r"ours, seed 0 and ours, seed 1 .* in protocol\.windows\n.*out/ours"):
        cells(scored(same, same, same, whole))
    with pytest.raises(AnalysisError, match=r"base, seed 0 and ours, seed 0 .* differ in protocol\.windows"):
        cells(scored(same, same, whole, whole))
    with pytest.raises(AnalysisError, match="differ in their version"):
        cells(scored(old, old, same, same))
    assert len(cells(scored(same, same, prompted, prompted))) == 2  # prompts are a row's own
    with pytest.raises(AnalysisError, match=r"protocol\.templates"):
        cells(scored(same, same, prompted, same))


def test_other_environments_are_one_note(tmp_path: Path) -> None:
    same, other = evaluated(), evaluated(pillow="9.0")
    assert "note" not in write_table(tmp_path, "T", scored(same, same, same, same))
    assert write_table(tmp_path, "T", scored(same, same, other, same)).endswith(
        "note: from environments that differ in pillow (11.0, 9.0)\n"
    )
    document = json.loads((tmp_path / "ablation.json").read_text())
    assert document["environment"] == {"pillow": ["11.0", "9.0"], "device": "cpu"}
    assert (document["unit"], document["miou_over"]) == ("fraction", "ground_truth")


def test_boundary_iou_has_a_table_of_its_own(tmp_path: Path) -> None:
    """From the counts in the bands: 0.1 and 0.2 more than the base, all of it in one of the two images.

    Of two images drawn with replacement, that one is there 0, 1 or 2 times with shares of 1/4, 1/2 and 1/4.
    """
    half, scores = counts([5, 5], [5, 5]), []
    for row, seed, gain in (("base", 0, 0), ("ours", 0, 1), ("base", 1, 0), ("ours", 1, 2)):
        bands = counts([2 + 2 * gain, 4 + 2 * gain], [2, 4])
        scores.append(Score(row, seed, "val", 0.5, half, evaluated(), bands))
    miou, bands_text = write_table(tmp_path, "T", scores).split("## T: Boundary IoU")
    assert "| base | 50.00% ± 0.00% |" in miou and "| +0.00 | +0.00 to +0.00 |" in miou
    assert "| base | 30.00% ± 0.00% |" in bands_text and "| ours | 45.00% ± 7.07% |" in bands_text
    assert "| +15.00 | -48.53 to +78.53 | " in bands_text
    assert bands_text.count("Boundary IoU over the classes of the ground truth") == 1
    latex = (tmp_path / "ablation.tex").read_text()
    assert latex.count(r"\begin{tabular}{lrrrr}") == 2 and latex.count(r"\midrule") == 2
    assert r"ours & 45.00\% $\pm$ 7.07\% & +15.00 & $-$48.53 to +78.53 & " in latex
    document = json.loads((tmp_path / "ablation.json").read_text())
    base, ours = document["boundary_iou_cells"]
    assert base["boundary_iou"] == pytest.approx([0.3, 0.3]) and ours["boundary_iou"] == pytest.approx([0.4, 0.5])
    half_width = 1.96 * 0.15 * 0.5**0.5
    assert ours["difference_over_images"] == pytest.approx([0.15 - half_width, 0.15 + half_width], abs=0.01)
    assert "miou" not in ours and document["cells"][1]["miou"] == [0.5, 0.5]


def test_the_figure_has_each_difference_with_both_intervals(tmp_path: Path) -> None:
    """0.1 and 0.3 more than the base: 0.2, and 12.706 standard errors of 0.1 over seeds to both sides."""
    half, scores = counts([5, 5], [5, 5]), []
    for row, seed, miou in (("base", 0, 0.4), ("a^b", 0, 0.5), ("base", 1, 0.4), ("a^b", 1, 0.7)):
        scores.append(Score(row, seed, "val", miou, half, evaluated()))
    drawn = figure("T", cells(scores))
    kinds = {kind: [box for box in drawn.boxes if box.kind == kind] for kind in ("bar", "ink")}
    over_seeds, over_images = kinds["ink"]
    pixels = kinds["bar"][0].place[2] / 20  # of one point
    assert over_seeds.place[2] == pytest.approx(2 * 127.06 * pixels) and over_images.place[2] == pytest.approx(0)
    assert over_seeds.place[1] < over_images.place[1]
    assert [text.text for text in drawn.texts if text.text in ("a^b", "base", "+20.00")] == ["a^b", "+20.00"]
    write_table(tmp_path, "T", scores)
    assert "a^b" in (tmp_path / "ablation.svg").read_text() and (tmp_path / "ablation.png").exists()


def test_boundary_iou_of_an_earlier_result_is_not_known(tmp_path: Path) -> None:
    scores = scored(*[evaluated()] * 4)
    some = [replace(score, boundary=score.images) for score in scores[1:]]
    for known in (scores, [scores[0], *some]):
        assert "Boundary IoU is not known" in write_table(tmp_path, "T", known)
        assert json.loads((tmp_path / "ablation.json").read_text())["boundary_iou_cells"] is None


def test_resampled_miou_is_that_of_the_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    parts, confusions = [], []
    for _ in range(5):
        confusion = ConfusionMatrix(4, 255)
        labels = rng.integers(0, 5, (6, 7))
        labels[labels == 4] = 255
        parts.append(confusion.update(rng.integers(0, 3, (6, 7)), labels))  # class 3 is never predicted
        confusions.append(confusion)
    images = ImageCounts.stack({str(index): part for index, part in enumerate(parts)}, 4)
    weights = np.array([[1.0, 1, 1, 1, 1], [2, 0, 3, 0, 0]])
    whole = confusions[0] + confusions[1] + confusions[2] + confusions[3] + confusions[4]
    drawn = confusions[0] + confusions[0] + confusions[2] + confusions[2] + confusions[2]
    assert images.resampled_miou(weights) == pytest.approx([whole.miou(), drawn.miou()])
    low, high = images.interval()
    assert low < whole.miou() < high


def test_bootstrap_weights_draw_with_replacement() -> None:
    weights = bootstrap_weights(7, 500, seed=1)
    assert (weights.sum(axis=1) == 7).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.2)
    assert weights.var() == pytest.approx(6 / 7, abs=0.1)  # of a multinomial: n p (1 - p)


def test_the_command_trains_scores_and_resumes(write_config: Write, tmp_path: Path, train_manifest: Manifest) -> None:
    """One seed by this process, one more by two others, which share the runs: their bits are those of `train`."""
    train_manifest.write(tmp_path / "val.parquet")
    config = write_config(steps=2)
    both = '[[rows]]\nname = "{}"\nset = ["losses.lambda_p={}", "losses.lambda_sac=1"]\n'
    table = tmp_path / "rows.toml"
    table.write_text('title = "t"\n' + both.format("+L^sac", 0) + both.format("both", 1))
    arguments = ["analyse", "ablation", str(table), str(config), "--out", str(tmp_path / "out")]
    arguments += [str(tmp_path / "val.parquet"), "--no-windows", "--seeds"]
    done = CliRunner().invoke(app, [*arguments, "0"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = ["+L^sac", "both"]
    assert [cell["row"] for cell in json.loads((tmp_path / "out/ablation.json").read_text())["cells"]] == rows
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert len(before) == 2
    again = CliRunner().invoke(app, [*arguments, "0,1", "--jobs", "2"], catch_exceptions=False)
    assert again.exit_code == 0, again.output
    document = json.loads((tmp_path / "out/ablation.json").read_text())
    assert [cell["row"] for cell in document["cells"]] == rows
    assert all(len(cell["miou"]) == 2 for cell in document["cells"])
    assert document["cells"][0]["difference"] is None
    assert document["cells"][1]["difference_over_images"] is not None
    assert document["boundary_iou_cells"][1]["difference_over_images"] is not None
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert len(after) == 4 and {path: after[path] for path in before} == before
    settings = ["losses.lambda_p=0", "losses.lambda_sac=1", "seed=1"]
    train(load_config(config, settings, run=tmp_path / "alone"), progress=False)
    assert same_bits(weights(tmp_path / "out/l-sac/seed_1"), weights(tmp_path / "alone"))


@pytest.mark.torture
@pytest.mark.parametrize("stop", ["interrupt", "failure"])
def test_runs_at_once_end_together(
    write_config: Write, tmp_path: Path, train_manifest: Manifest, store: Path, stop: str
) -> None:
    """After Ctrl-C, and when one of them fails: the other saves, nobody is left, and the command ends at once."""
    train_manifest.write(tmp_path / "val.parquet")
    table = tmp_path / "rows.toml"
    missing = '"data.store=gone.zarr"' if stop == "failure" else ""
    rows = f'[[rows]]\nname = "a"\nset = []\n[[rows]]\nname = "b"\nset = [{missing}]\n'
    table.write_text(f'title = "t"\n{rows}')
    words = ["analyse", "ablation", table, write_config(steps=100_000), "--out", tmp_path / "out", "--seeds", "0"]
    words += [tmp_path / "val.parquet", "--jobs", "2"]
    with Forked(calling(*words), tmp_path / "said.txt") as process:
        if stop == "interrupt":
            for row in ("a", "b"):
                wait_until(lambda row=row: steps_of(tmp_path / f"out/{row}/seed_0") > 1)
            process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
        process.wait_until_gone()
    for row in "a" if stop == "failure" else "ab":
        reached = steps_of(tmp_path / f"out/{row}/seed_0")
        assert checkpoint.steps(tmp_path / f"out/{row}/seed_0/checkpoints") == ([reached] if reached else [])
    assert stop == "interrupt" or "gone.zarr" in process.text()


def steps_of(run: Path) -> int:
    log = RunFolder(run).log_file
    return len(read_log(log, "step")) if log.exists() else 0


def test_bad_input_names_the_place(tmp_path: Path, write_config: Write) -> None:
    with pytest.raises(AnalysisError, match="table9: no such table or file"):
        read_table("table9")
    own = tmp_path / "own.toml"
    own.write_text('title = "t"\n[[rows]]\nname = "only"\nset = []\n')
    with pytest.raises(AnalysisError, match="two rows or more"):
        read_table(str(own))
    own.write_text('title = "t"\n[[rows]]\nname = "a"\nset = []\n[[rows]]\nname = "b"\nset = []\nagainst = "c"\n')
    with pytest.raises(AnalysisError, match="b: expected `against` to name a row, got c"):
        read_table(str(own))
    own.write_text('title = "t"\nrows = []\n')
    with pytest.raises(AnalysisError, match="not a table of rows"):
        read_table(str(own))
    own.write_text('title = "t"\n[[rows]]\nname = "a"\nset = []\n[[rows]]\nname = "b"\nset = ["losses.lambda_q=1"]\n')
    with pytest.raises(ConfigError, match=r"row 'b'.*lambda_q"):
        plan(read_table(str(own)), write_config(), out=tmp_path, seeds=[0], settings=[])
    with pytest.raises(ConfigError, match="no such configuration file") as caught:
        load_config(tmp_path / "absent.toml")
    assert "vit-b-16" in str(caught.value.hint)
