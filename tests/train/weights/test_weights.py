"""Fetched CLIP weights: tags, the cache, what a run begins with, and the commands; no network but a fake download."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from physseg.cli import app
from physseg.common.atomic import atomic_json
from physseg.common.errors import ConfigError
from physseg.train.config import TrainConfig
from physseg.train.errors import RunFolderError, WeightsError
from physseg.train.loop.loop import train
from physseg.train.model.backbones.interface import published_names
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import Segmenter
from physseg.train.prediction.load_run import load_run
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from physseg.train.weights import fetch as weights_fetch
from physseg.train.weights.cache import (
    RECORD_FILE,
    ClipWeights,
    WeightsRecord,
    cache_folder,
    find_clip_weights,
    read_record,
    weights_folder,
)
from physseg.train.weights.fetch import PretrainedTag, Source, fetch, find_tag, pretrained_tags
from physseg.train.weights.initial_weights import fitted_to, settle_clip_weights
from typer.testing import CliRunner

WEIGHTS_SHA256 = hashlib.sha256(b"weights").hexdigest()
TAG = PretrainedTag(
    clip="ViT-B-16",
    tag="openai",
    quick_gelu=True,
    sources=(Source(url="https://first/x/ViT-B-16.pt", sha256="abc"), Source(url="https://second/model.safetensors")),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHYSSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that were asked for; the first place has nothing, the others b"weights"."""
    calls = []

    def fake(url: str, target: Path) -> None:
        calls.append(url)
        if "first" in url:
            raise OSError("HTTP Error 404: Not Found")
        target.write_bytes(b"weights")

    monkeypatch.setattr(weights_fetch, "_from_web", fake)
    return calls


# --- tags -----------------------------------------------------------------------------------------------------------


def test_tags_are_open_clips() -> None:
    """Every preset has some; the activation and the places are as published."""
    tags = {(one.clip, one.tag): one for one in pretrained_tags()}
    openai = tags["ViT-B-16", "openai"]
    assert openai.quick_gelu
    assert openai.sources[0].url.endswith("/ViT-B-16.pt")
    assert len(openai.sources[0].sha256) == 64
    assert openai.sources[0].sha256 in openai.sources[0].url
    large, huge = tags["ViT-L-14-336", "openai"], tags["ViT-H-14", "laion2b_s32b_b79k"]
    assert (large.quick_gelu, huge.quick_gelu) == (True, False)
    assert huge.sources[0].url.startswith("https://huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K/resolve/main/")
    assert tags["ViT-B-16", "laion400m_e32"].sources[0].sha256 == "55e67d44"
    assert not tags["ViT-B-16", "laion400m_e32"].quick_gelu
    assert tags["ViT-H-14", "dfn5b"].quick_gelu
    assert all(one.sources for one in tags.values())
    # Trained by LAION with means and deviations of a half; the others of that size with OpenAI's.
    assert tags["ViT-L-14", "laion2b_s32b_b82k"].image_mean == tags["ViT-L-14", "laion2b_s32b_b82k"].image_std == HALF
    assert tags["ViT-L-14", "datacomp_xl_s13b_b90k"].image_std == OPENAI_DATASET_STD
    assert {"ViT-B-32", "ViT-g-14", "ViT-bigG-14", "ViT-H-14-378"} < {clip for clip, _ in tags}


def test_every_tag_that_open_clip_has_for_a_backbone_is_listed() -> None:
    """Of these names, and the activation is open_clip's, too: the twins' names end in "-quickgelu"."""
    listed = {(one.clip, one.tag): one.quick_gelu for one in pretrained_tags()}
    published = [pair for pair in open_clip.list_pretrained() if pair[0] in published_names()]
    assert sorted(listed) == sorted(published)
    assert len(published) > 60
    twins = [
        (clip, tag) for clip, tag in open_clip.list_pretrained() if (clip.removesuffix("-quickgelu"), tag) in listed
    ]
    assert {(clip.removesuffix("-quickgelu"), tag) for clip, tag in twins if clip.endswith("-quickgelu")} == {
        pair for pair, quick_gelu in listed.items() if quick_gelu
    }


def test_a_tag_of_several_presets_needs_the_preset() -> None:
    with pytest.raises(WeightsError, match=r"'openai' is a tag of ViT-B-16, ViT-B-32, ViT-L-14.*\n.*--clip ViT-B-16"):
        find_tag("openai", None)
    assert find_tag("openai", "ViT-L-14-336").clip == "ViT-L-14-336"
    assert find_tag("laion2b_s32b_b79k", None).clip == "ViT-H-14"
    assert find_tag("laion2b_s32b_b82k", None).clip == "ViT-L-14"
    with pytest.raises(WeightsError, match=r"'opemai' is no tag of ViT-B-16\n.*known: openai, laion400m"):
        find_tag("opemai", "ViT-B-16")
    for clip in (None, "tiny"):
        with pytest.raises(WeightsError, match=r"is in the package\n.*needs no fetching"):
            find_tag("scenes", clip)
    for none in ("tiny", "ViT-L-16", "ViT-B-16-quickgelu"):
        with pytest.raises(WeightsError, match=rf"'{none}' has no published weights\n.*have: .*ViT-B-16, "):
            find_tag("openai", none)


# --- cache ----------------------------------------------------------------------------------------------------------


def test_fetch_records_what_it_got_and_from_where(asked: list[str], folder: Path) -> None:
    record, fetched = fetch(TAG)
    assert fetched
    assert asked == ["https://first/x/ViT-B-16.pt", "https://second/model.safetensors"]
    assert (record.url, record.file, record.num_bytes) == ("https://second/model.safetensors", "model.safetensors", 7)
    assert record.sha256 == WEIGHTS_SHA256
    assert read_record("ViT-B-16", "openai") == record
    path = weights_folder("ViT-B-16", "openai") / RECORD_FILE
    written = json.loads(path.read_text())
    assert written["image_mean"] == list(OPENAI_DATASET_MEAN)
    path.write_text(json.dumps({key: value for key, value in written.items() if not key.startswith("image_")}))
    assert read_record("ViT-B-16", "openai") == record  # as records were before
    path.write_text(json.dumps({key: value for key, value in written.items() if key != "sha256"}))
    with pytest.raises(WeightsError, match=r"not a record of fetched weights .*sha256"):
        read_record("ViT-B-16", "openai")
    path.write_text(json.dumps(written))
    found = find_clip_weights("openai", "ViT-B-16")
    assert found.path == folder / "clip/ViT-B-16/openai/model.safetensors"
    assert found.quick_gelu
    assert fetch(TAG) == (record, False)
    assert len(asked) == 2


def test_a_mirror_keeps_the_tags_hash(asked: list[str]) -> None:
    mirror = "https://mirror/clip/ViT-B-16.pt?download=1"
    with pytest.raises(WeightsError, match="expected sha256 abc"):
        fetch(TAG, url=mirror)
    fetch(replace(TAG, sources=(replace(TAG.sources[0], sha256=WEIGHTS_SHA256[:6]),)), url=mirror)
    assert asked == [mirror, mirror]
    assert find_clip_weights("openai", "ViT-B-16").path.name == "ViT-B-16.pt"
    with pytest.raises(WeightsError, match="does not end in a file's name"):
        fetch(replace(TAG, tag="other"), url="https://mirror/clip/")


def test_a_changed_file_is_not_used_but_fetched_again(asked: list[str]) -> None:
    record, _ = fetch(TAG)
    path = weights_folder("ViT-B-16", "openai") / record.file
    path.write_bytes(b"weighty")
    with pytest.raises(WeightsError, match=r"expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}\n.*weights fetch openai"):
        find_clip_weights("openai", "ViT-B-16")
    assert fetch(TAG) == (record, True)
    assert find_clip_weights("openai", "ViT-B-16").sha256 == record.sha256


def test_every_places_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(url: str, target: Path) -> None:
        raise OSError("unreachable")

    monkeypatch.setattr(weights_fetch, "_from_web", none)
    with pytest.raises(WeightsError, match=r"first/x/ViT-B-16.pt: unreach.*; https://second.*unreach") as caught:
        fetch(TAG)
    assert "clip_weights" in str(caught.value.hint)
    assert read_record("ViT-B-16", "openai") is None


def test_a_wrong_hash_is_not_covered_up_by_another_place(asked: list[str]) -> None:
    with pytest.raises(WeightsError, match=r"^https://second/other.pt: expected sha256 abc"):
        fetch(replace(TAG, sources=(Source(url="https://second/other.pt", sha256="abc"), TAG.sources[1])))
    assert asked == ["https://second/other.pt"]


def test_the_cache_is_in_the_home_folder_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHYSSEG_CACHE")
    monkeypatch.setenv("HOME", "/somebody")
    assert cache_folder() == Path("/somebody/.cache/physseg")


def test_what_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"'openai' for ViT-B-16 is not in the cache .*\n.*weights fetch openai --clip"
    ):
        find_clip_weights("openai", "ViT-B-16")
    with pytest.raises(WeightsError, match=r"not in the cache .*\n.*nobody has published weights for tiny"):
        find_clip_weights("openai", "tiny")
    with pytest.raises(WeightsError, match=r"none\.pt: no such file"):
        find_clip_weights(str(tmp_path / "none.pt"), "ViT-B-16")
    folder = weights_folder("ViT-B-16", "torn")
    folder.mkdir(parents=True)
    (folder / "weights.json").write_text('{"clip": "ViT-B-16"')
    with pytest.raises(WeightsError, match="not a record of fetched weights"):
        find_clip_weights("torn", "ViT-B-16")


# --- what a run begins with -----------------------------------------------------------------------------------------


def test_activation_follows_from_tag_or_file() -> None:
    base, large = SegmenterConfig(), SegmenterConfig(clip="ViT-L-14-336")
    tag = ClipWeights(name="openai", path=Path("x.pt"), sha256="", quick_gelu=True)
    untold = ClipWeights(name="a/b.bin", path=Path("a/b.bin"), sha256="", quick_gelu=None)
    openai_form = replace(untold, quick_gelu=True)
    assert [fitted_to(one, base).quick_gelu for one in (tag, untold, openai_form)] == [True, False, True]
    assert fitted_to(untold, large).quick_gelu is None and large.arch.quick_gelu  # as the preset has it
    assert fitted_to(untold, SegmenterConfig(clip="ViT-H-14")).quick_gelu is None
    assert not fitted_to(openai_form, replace(base, quick_gelu=False)).quick_gelu  # one's own file: one knows best
    with pytest.raises(ConfigError, match="quick_gelu is false, but 'openai' needs true"):
        fitted_to(tag, replace(base, quick_gelu=False))
    assert replace(base, quick_gelu=False).arch.quick_gelu is False


HALF = (0.5, 0.5, 0.5)


def test_normalisation_follows_from_the_tag() -> None:
    base = SegmenterConfig(clip="ViT-L-14")
    tag = ClipWeights(
        name="laion2b", path=Path("x"), sha256="", quick_gelu=False, image_mean=HALF, image_std=(0.1, 0.2, 0.3)
    )
    untold = ClipWeights(name="a/b.bin", path=Path("a/b.bin"), sha256="", quick_gelu=None)
    arch = fitted_to(tag, base).arch
    assert (arch.image_mean, arch.image_std, arch.quick_gelu) == (HALF, (0.1, 0.2, 0.3), False)
    assert fitted_to(untold, base).arch.image_mean == OPENAI_DATASET_MEAN
    assert fitted_to(untold, replace(base, image_mean=HALF)).arch.image_mean == HALF
    assert fitted_to(tag, replace(base, image_mean=HALF)).arch.image_std == (0.1, 0.2, 0.3)
    with pytest.raises(
        ConfigError,
        match=r"model\.image_std is \(0\.5.*\), but 'laion2b' needs \(0\.1, 0\.2, 0\.3\)\n.*leave image_std out",
    ):
        fitted_to(tag, replace(base, image_std=HALF))


def _cached(
    model: SegmenterConfig, *, quick_gelu: bool, fill: float = 3.5, image_mean: tuple[float, ...] = HALF
) -> WeightsRecord:
    """Weights of the configuration's CLIP in the cache, under the tag "mine"."""
    clip = Segmenter(model).clip
    with torch.no_grad():
        clip.visual.ln_post.weight.fill_(fill)
    path = weights_folder(model.clip, "mine") / "clip.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(clip.state_dict(), path)
    record = WeightsRecord(
        clip=model.clip,
        tag="mine",
        file=path.name,
        url="https://x/clip.safetensors",
        num_bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        quick_gelu=quick_gelu,
        image_mean=image_mean,
        version="0",
    )
    atomic_json(path.parent / RECORD_FILE, asdict(record))
    return record


def test_a_run_begins_with_a_tag_and_keeps_its_activation_and_normalisation(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    record = _cached(make_config().model, quick_gelu=True)
    config = make_config(clip_weights="mine", steps=2, optim={"learning_rate": 1e-9})
    assert config.clip_weights == "mine"
    train(config, stop_at=1, progress=False)
    run = RunFolder(tmp_path / "run")
    document = run.read()
    facts = {"name": "mine", "file": "clip.safetensors", "sha256": record.sha256}
    assert document["origin"] == {"clip_weights": facts}
    assert document["model"]["quick_gelu"] is True
    assert document["model"]["image_mean"] == list(HALF)
    assert document["model"]["image_std"] == list(OPENAI_DATASET_STD)
    assert load_run(run.path).model.clip_mean.flatten().tolist() == [127.5] * 3
    assert read_log(run.log_file, "start")[0]["clip_weights"] == facts
    weights = safetensors.torch.load_file(run.checkpoints / "step_00000001/model.safetensors")
    torch.testing.assert_close(weights["clip.visual.ln_post.weight"], torch.full((32,), 3.5))
    (weights_folder(record.clip, "mine") / "weights.json").unlink()
    assert train(config, progress=False).finished  # nothing of the cache is needed to go on


def test_a_run_without_a_checkpoint_begins_with_the_same_file_again(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    _cached(make_config().model, quick_gelu=False)
    config = make_config(clip_weights="mine")
    train(config, stop_at=1, progress=False)
    run = RunFolder(tmp_path / "run")
    (run.checkpoints / "step_00000001").rename(tmp_path / "gone")
    assert settle_clip_weights(config, run)[1] is not None
    _cached(make_config().model, quick_gelu=False, fill=4.5)
    with pytest.raises(RunFolderError, match=r"begun with clip_weights of sha256 [0-9a-f]+, now mine has [0-9a-f]+"):
        settle_clip_weights(config, run)


# --- commands -------------------------------------------------------------------------------------------------------


def _call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_list_and_fetch_from_the_command_line(asked: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    other = replace(TAG, tag="other", quick_gelu=False, image_mean=HALF)
    monkeypatch.setattr(weights_fetch, "pretrained_tags", lambda: (TAG, other, replace(TAG, clip="ViT-L-14", tag="x")))
    shown = _call("weights", "fetch", "openai")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert shown.exit_code == 0
    assert f"sha256 {sha256}" in shown.stdout
    assert str(folder / "clip/ViT-B-16/openai/model.safetensors") in shown.stdout
    assert "is in the cache already" in _call("weights", "fetch", "openai").stdout
    lines = _call("weights", "list").stdout.splitlines()
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["ViT-B-16", "openai", "QuickGELU", "OpenAI's"],
        ["ViT-B-16", "other", "GELU", "0.5"],
        ["ViT-L-14", "x", "QuickGELU", "OpenAI's"],
    ]
    assert len(_call("weights", "list", "--clip", "ViT-L-14").stdout.splitlines()) == 3
    assert "those that have: ViT-B-16, ViT-L-14" in str(
        CliRunner().invoke(app, ["weights", "list", "--clip", "x"]).exception
    )
    assert sha256[:16] in lines[1]
    assert "cached" not in lines[2]
    entries = json.loads(_call("weights", "list", "--json", "-").stdout)
    assert entries[0]["sha256"] == sha256
    assert entries[1]["sha256"] is None
    assert entries[1]["image_mean"] == list(HALF)
