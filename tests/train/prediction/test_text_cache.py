"""Text features from the cache are those that the model computes, to the last bit, whatever happened to the file."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.inference import class_texts
from physseg.train.model.segmenter import Segmenter
from physseg.train.prediction import text_cache
from physseg.train.prediction.load_run import LoadedRun
from physseg.train.prediction.text_cache import cached_texts

CLASSES = tuple(f"thing {number}, object {number}" for number in range(60))


@pytest.fixture
def loaded() -> LoadedRun:
    torch.manual_seed(0)
    model = Segmenter(SegmenterConfig(clip="tiny", templates=("a {}", "the {}"))).eval()
    return LoadedRun(model=model, classes=(), step=1, origin={}, weights="ab" * 32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHYSSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/texts"


@pytest.fixture
def encoded(loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of prompts went through the text encoder, call by call."""
    calls: list[int] = []
    encode = loaded.model.encode_text

    def counted(tokens: torch.Tensor) -> torch.Tensor:
        calls.append(len(tokens))
        return encode(tokens)

    monkeypatch.setattr(loaded.model, "encode_text", counted)
    return calls


def test_the_same_bits_once_computed(loaded: LoadedRun, folder: Path, encoded: list[int]) -> None:
    first, second = cached_texts(loaded, CLASSES), cached_texts(loaded, CLASSES)
    assert encoded == [60]
    assert torch.equal(first, second)
    assert torch.equal(second, class_texts(loaded.model, CLASSES))
    assert (second.shape, second.dtype) == ((60, 2, loaded.model.arch.embed_dim), torch.float32)
    assert second.is_contiguous() and second.data_ptr() % 64 == 0  # as PyTorch's own
    assert len(list(folder.iterdir())) == 1


def test_what_features_follow_from_has_files_of_its_own(
    loaded: LoadedRun, folder: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_texts(loaded, CLASSES)
    cached_texts(loaded, CLASSES[::-1])
    cached_texts(replace(loaded, weights="cd" * 32), CLASSES)
    loaded.model.set_prompts(templates=("a {}", "one {}"))
    cached_texts(loaded, CLASSES)
    loaded.model.set_prompts(synonyms="mean")
    assert torch.equal(cached_texts(loaded, CLASSES), class_texts(loaded.model, CLASSES))
    monkeypatch.setattr(text_cache, "PRECISION", "fp32")
    cached_texts(loaded, CLASSES)
    monkeypatch.setattr(text_cache, "version", lambda name: "99")
    cached_texts(loaded, CLASSES)
    assert len(encoded) == 8
    assert len(list(folder.iterdir())) == 7


def test_few_prompts_are_not_kept(loaded: LoadedRun, folder: Path, encoded: list[int]) -> None:
    for _ in range(2):
        cached_texts(loaded, CLASSES[:49])
    assert encoded == [49, 49]
    assert not folder.exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [flip, torn, fifo, lambda path: path.write_bytes(b"")])
def test_a_damaged_file_is_computed_again(damage: Any, loaded: LoadedRun, folder: Path, encoded: list[int]) -> None:
    expected = cached_texts(loaded, CLASSES)
    [path] = folder.iterdir()
    whole = path.read_bytes()
    damage(path)
    assert torch.equal(cached_texts(loaded, CLASSES), expected)
    assert path.read_bytes() == whole
    assert torch.equal(cached_texts(loaded, CLASSES), expected)
    assert len(encoded) == 2


def test_a_cache_in_which_nothing_can_be_written_is_one_line(
    loaded: LoadedRun, folder: Path, encoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder.parent.write_text("a file in its place")
    assert len(cached_texts(loaded, CLASSES)) == 60
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: text features are not kept: {folder}: ")


def test_the_oldest_go_first(loaded: LoadedRun, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_texts(loaded, CLASSES)
    [first] = folder.iterdir()
    monkeypatch.setattr(text_cache, "MAX_BYTES", 2 * first.stat().st_size)
    os.utime(first, (1, 1))
    cached_texts(loaded, CLASSES[::-1])
    assert first.exists()
    [second] = set(folder.iterdir()) - {first}
    os.utime(second, (2, 2))
    cached_texts(replace(loaded, weights="cd" * 32), CLASSES)
    assert not first.exists() and second.exists()
    assert len(list(folder.iterdir())) == 2
