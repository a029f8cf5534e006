"""The package's own CLIP weights: found by their tag, as the card describes them, and better than chance by far."""

from physseg.train.demo.pretrain import judge
from physseg.train.weights.cache import file_sha256, find_clip_weights


def test_scenes_are_found_by_tag_and_described_by_their_card():
    found = find_clip_weights("scenes", "tiny")
    assert found.path.stat().st_size < 3e6
    assert found.sha256 == file_sha256(found.path)
    assert f"`{found.sha256}`" in found.path.with_suffix(".md").read_text(encoding="utf-8")


def test_scenes_segment_without_any_training():
    """One of 60 names by chance is right for 1.7% of the pixels, and one of 24 pairs comes first 4% of the time."""
    found = judge(find_clip_weights("scenes", "tiny").path, seed=7, pairs=24, scenes=4)
    assert found["mIoU, seen"] > 0.15
    assert found["mIoU, words"] > 0.15
    assert min(found["image to text"], found["text to image"]) > 0.2
