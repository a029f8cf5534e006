"""The package's own CLIP weights: found by their tag, as the card describes them, and better than chance by far."""

import pytest
from physseg.train.demo.pretrain import judge
from physseg.train.errors import WeightsError
from physseg.train.weights import cache
from physseg.train.weights.cache import file_sha256, find_clip_weights
from physseg.train.weights.fetch import listing, listing_lines


def test_scenes_are_found_by_tag_and_described_by_their_card():
    found = find_clip_weights("scenes", "tiny")
    assert found.path.stat().st_size < 3e6
    assert found.sha256 == file_sha256(found.path)
    assert f"`{found.sha256}`" in found.path.with_suffix(".md").read_text(encoding="utf-8")


def test_scenes_are_of_one_backbone_and_the_list_has_them():
    for clip in ("ViT-B-16", "TINY"):
        with pytest.raises(WeightsError, match=f"'scenes'.*'tiny'.*{clip}"):
            find_clip_weights("scenes", clip)
    found = find_clip_weights("scenes", "tiny")
    (entry,) = listing("tiny")
    assert (entry["tag"], entry["sha256"], entry["file"]) == ("scenes", found.sha256, str(found.path))
    assert "in the package, 1.9 MB" in listing_lines([entry])[1]
    assert not entry["sources"] and entry in listing()


@pytest.mark.parametrize("fault", ["torn", "one bit", "missing"])
def test_damaged_scenes_are_refused_before_they_train(fault, tmp_path, monkeypatch):
    own = find_clip_weights("scenes", "tiny").path
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    if fault != "missing":
        (tmp_path / own.name).write_bytes(data[:1000] if fault == "torn" else data)
    (tmp_path / "scenes.md").write_text(own.with_suffix(".md").read_text())
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    with pytest.raises(WeightsError, match=r"scenes\.safetensors: expected the sha256 of its card"):
        find_clip_weights("scenes", "tiny")


def test_scenes_segment_without_any_training():
    """One of 60 names by chance is right for 1.7% of the pixels, and one of 24 pairs comes first 4% of the time."""
    found = judge(find_clip_weights("scenes", "tiny").path, seed=7, pairs=24, scenes=4)
    assert found["mIoU, seen"] > 0.15
    assert found["mIoU, words"] > 0.15
    assert min(found["image to text"], found["text to image"]) > 0.2
