"""The example of docs/backbones.md: as a package's backbone it trains, and each rule that it breaks is told."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import physseg
import pytest
import torch
from physseg.common.plugins import ConformanceError, PluginError, offers
from physseg.testing import check_backbone
from physseg.train.config import TrainConfig
from physseg.train.errors import CheckpointError
from physseg.train.loop.loop import train
from physseg.train.model.backbones.interface import find_architecture
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import Segmenter
from physseg.train.prediction.load_run import load_run

PAGE = (Path(physseg.__file__).parent / "docs/backbones.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]


def described(**changes: object) -> object:
    names: dict[str, object] = {"__name__": "physseg_pyramid"}
    exec(EXAMPLE, names)
    small = {"image_px": 64, "embed_dim": 16, "text_width": 16, "text_layers": 1, "text_heads": 1, **changes}
    return replace(names["pyramid"]("pyramid"), **small)  # type: ignore[operator, type-var]


def test_the_example_keeps_every_rule() -> None:
    check_backbone(described())


@pytest.mark.parametrize("name", ["tiny", "EVA02-B-16", "PE-Core-B-16"])
def test_our_own_keep_every_rule(name: str) -> None:
    sizes = {"vision_width": 64, "vision_layers": 4, "vision_heads": 2, "text_width": 32, "text_layers": 2}
    arch = find_architecture(name)
    check_backbone(replace(arch, image_px=4 * arch.patch_px, embed_dim=32, text_heads=2, **sizes))


@pytest.mark.parametrize(
    ("line", "instead", "told"),
    [
        ("stages[0]).flatten(2)", "stages[0]).transpose(2, 3).flatten(2)", "patches row by row"),
        ("(self.trunk(images))[::-1]", "(self.trunk(images + self.training))[::-1]", "training True"),
        ("(self.trunk(images))[::-1]", "(self.trunk(images - images.mean()))[::-1]", "one crop by itself"),
        ("stages if levels else ()", "stages", "levels only where asked for"),
        ("(32, 16, 8, 4)", "(32, 16, 8, 8)", "patches, guidance, levels"),
        ("self.levels[1:3]", "self.levels[3], self.levels[3]", "guidance: expected a stride that is a multiple"),
        ('if rule == "all"', 'if rule == "all" or "proj" in name', r"trainable\('none'\): expected none"),
        (
            "super().__init__(arch, text=text)",
            "super().__init__(arch, text=text)\n        self.idle = nn.Linear(1, 1)",
            "grad",
        ),
        ('if "project.weight" not in state:', "if False:", "for a foreign state dict"),
    ],
)
def test_each_rule_is_told(line: str, instead: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EXAMPLE.count(line) == 1
    monkeypatch.setitem(globals(), "EXAMPLE", EXAMPLE.replace(line, instead))
    with pytest.raises(ConformanceError, match=told):
        check_backbone(described())  # type: ignore[arg-type]


TEXTS = {
    "int64": ("tokenize(self, prompts)", "super().tokenize(prompts).int()"),
    "longer than the context": ("tokenize(self, prompts)", "super().tokenize([prompt[:9] for prompt in prompts])"),
    "encode_text: expected": ("encode_text(self, tokens, shared=None)", "super().encode_text(tokens)[:, :2]"),
    "one row by itself": ("encode_text(self, tokens, shared=None)", "super().encode_text(tokens) - len(tokens)"),
}


@pytest.mark.parametrize("told", TEXTS)
def test_texts_are_looked_at(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    signature, value = TEXTS[told]
    monkeypatch.setitem(globals(), "EXAMPLE", EXAMPLE + f"\n    def {signature}:\n        return {value}\n")
    with pytest.raises(ConformanceError, match=told):
        check_backbone(described())  # type: ignore[arg-type]


def test_a_backbone_of_a_package_trains_and_is_loaded(
    install: Callable[..., Path], make_config: Callable[..., TrainConfig]
) -> None:
    source = EXAMPLE.replace("image_px=768", "image_px=192").replace("text_layers=6", "text_layers=1")
    site = install("far-backbones", "pyramid = far_backbones:pyramid", source, "backbones")
    config = make_config(steps=1, model={"clip": "pyramid", "architecture": None}, data={"crop": 96})
    assert (config.model.finetune, config.model.arch.grid) == ("all", 6)
    train(config, progress=False)
    model = load_run(config.run, device="cpu").model
    assert type(model.clip).__name__ == "Pyramid"
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 96, 96), torch.ones(2, 1, 256)).logits.shape == (1, 2, 24, 24)
    (site / "far_backbones-1.5.dist-info/entry_points.txt").unlink()
    offers.cache_clear()
    with pytest.raises(CheckpointError, match="unknown backbone 'pyramid'") as gone:
        load_run(config.run, device="cpu")
    assert "the package that offers it installed" in (gone.value.hint or "")


@pytest.mark.parametrize(
    ("built", "told"),
    [
        ('raise RuntimeError("no weights on\\nthis moon")', "building it fails: RuntimeError: no weights on this moon"),
        ("return None", "expected a Backbone with encode_image, got NoneType"),
    ],
)
def test_what_fails_to_be_built_is_told_of_its_package(built: str, told: str, install: Callable[..., Path]) -> None:
    source = EXAMPLE.replace("return Pyramid(self, text=text)", built)
    install("far-backbones", "pyramid = far_backbones:pyramid", source, "backbones")
    with pytest.raises((PluginError, ConformanceError)) as caught:
        Segmenter(SegmenterConfig(clip="pyramid"))
    assert caught.value.args[0] == f"backbone pyramid of the package far-backbones 1.5: {told}"


def test_of_many_names_some_are_listed_and_the_like_are_told() -> None:
    with pytest.raises(PluginError) as caught:
        find_architecture("ViT-B/16")
    assert len(caught.value.args[0]) < 250 and "did you mean 'ViT-B-16'" in (caught.value.hint or "")
