"""Prompt templates by name or file, and the two rules for synonyms."""

import tomllib
from importlib.metadata import version
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from physseg.common.errors import ConfigError
from physseg.common.settings import build, is_name, to_dict
from physseg.train.model import segmenter as segmenter_module
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import Segmenter
from physseg.train.model.text import (
    TEMPLATE,
    _open_clip_file,
    mean_over_synonyms,
    read_templates,
    synonyms_of,
    tokenize,
)

ROOT = Path(__file__).parents[3]

TEMPLATES = ("a photo of a {}", "the {} there")


def tiny(**settings: object) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(SegmenterConfig(clip="tiny", templates=TEMPLATES, **settings)).eval()


def test_open_clip_is_where_we_load_it_from() -> None:
    """Files of it are loaded by name, within the bounds of pyproject.toml: a version that moves them fails here."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (required,) = (Requirement(line) for line in dependencies if line.startswith("open_clip_torch"))
    assert version("open_clip_torch") in required.specifier
    assert "<" in {bound.operator for bound in required.specifier}
    package = Path(open_clip.__file__).parent
    assert (package / "tokenizer.py").is_file()
    assert (package / "zero_shot_metadata.py").is_file()
    assert _open_clip_file("tokenizer").SimpleTokenizer().encode("a photo of a cat") == [320, 1125, 539, 320, 2368]


# --- templates ------------------------------------------------------------------------------------------------------


def test_sets_of_templates() -> None:
    assert read_templates("single") == (TEMPLATE,)
    imagenet = read_templates("imagenet")
    assert len(imagenet) == len(set(imagenet)) == 80
    assert imagenet[0] == "a bad photo of a {}."
    assert [template.replace("{}", "cat") for template in imagenet] == [
        template("cat") for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]


def test_templates_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a {}\n\n  the {} there \n")
    assert read_templates(str(tmp_path / "mine.txt")) == ("a {}", "the {} there")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match=r"empty\.txt: expected one template a line"):
        read_templates(str(tmp_path / "empty.txt"))
    with pytest.raises(ConfigError, match=r'imagenot: expected "single", "imagenet"[^\n]*no such file'):
        read_templates("imagenot")


def test_a_template_stands_for_itself_whatever_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "{}").mkdir()  # no file by that name is looked for
    for template in ("{}", "a photo of a {}.", "a/b {}"):
        assert read_templates(template) == (template,)
        config = build(SegmenterConfig, {"clip": "tiny", "prompts": template}, base=tmp_path)
        assert (config.templates, config.prompts) == ((template,), "")


def test_a_configuration_names_a_set_or_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a {}\nthe {}\n")
    config = build(SegmenterConfig, {"clip": "tiny", "prompts": "mine.txt"}, base=tmp_path)
    assert (config.templates, config.prompts) == (("a {}", "the {}"), "")
    assert build(SegmenterConfig, to_dict(config), base=tmp_path / "elsewhere") == config
    assert len(build(SegmenterConfig, {"prompts": "imagenet"}, base=tmp_path).templates) == 80
    (tmp_path / "mine.txt").write_text("no place for a name\n")
    with pytest.raises(ConfigError, match="templates: each needs exactly one"):
        build(SegmenterConfig, {"prompts": "./mine.txt"}, base=tmp_path)


def test_prompts_and_templates_must_agree() -> None:
    assert SegmenterConfig(prompts="single", templates=(TEMPLATE,)).templates == (TEMPLATE,)
    with pytest.raises(ConfigError, match=r"'single' stands for other templates than \('a \{\}',\)"):
        SegmenterConfig(prompts="single", templates=("a {}",))


def test_names_and_paths() -> None:
    assert [is_name(text) for text in ("openai", "laion2b_s32b_b79k", "a.pt", "x/y", "./y", "C:\\y")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_other_braces_stay() -> None:
    assert torch.equal(tokenize(["cat"], ["{x} {}"]), tokenize(["{x} cat"], ["{}"]))


def test_prompts_can_be_exchanged_for_as_many() -> None:
    model = tiny()
    before = model.encode_text(model.tokenize(["cat"]))
    model.set_prompts(templates=("{}", "my {}"))
    assert model.config.templates == ("{}", "my {}")
    assert not torch.allclose(model.encode_text(model.tokenize(["cat"])), before)
    with pytest.raises(ConfigError, match="this model was trained with 2, got 1"):
        model.set_prompts(templates=("{}",))
    with pytest.raises(ConfigError, match="each needs exactly one"):
        model.set_prompts(templates=("{}", "my"))


# --- synonyms -------------------------------------------------------------------------------------------------------


def test_convention_synonyms() -> None:
    """The first name counts, unless the configuration says that all do; blanks and repetitions never do."""
    assert SegmenterConfig(clip="tiny").synonyms == "first"
    assert synonyms_of(" sofa , couch,, sofa,") == ("sofa", "couch")
    first = tokenize(["sofa, couch"], TEMPLATES)
    assert torch.equal(first, tokenize(["sofa"], TEMPLATES))
    all_names = tokenize(["sofa, couch", "dog"], TEMPLATES, synonyms="mean")
    assert all_names.shape[:3] == (2, 2, 2)  # class, synonym, template
    assert torch.equal(all_names[0, 1], tokenize(["couch"], TEMPLATES)[0])
    assert torch.equal(all_names[1, 0], tokenize(["dog"], TEMPLATES)[0])
    assert not all_names[1, 1].any()


def test_mean_by_hand() -> None:
    """Directions (1, 0) and (0, 1), lengths 2 and 4: the direction between them, length 3."""
    features = torch.tensor([[2.0, 0.0], [0.0, 4.0], [0.0, -5.0]])
    present = torch.tensor([[[True], [True]], [[True], [False]]])
    expected = torch.tensor([[[3 / 2**0.5, 3 / 2**0.5]], [[0.0, -5.0]]])
    torch.testing.assert_close(mean_over_synonyms(features, present), expected)


@torch.no_grad()
def test_mean_over_what_each_synonym_gives() -> None:
    names = ["sofa, couch, settee", "dog", "car, automobile"]
    model = tiny(synonyms="mean")
    found = model.encode_text(model.tokenize(names))
    assert found.shape == (3, 2, 64)
    model.set_prompts(synonyms="first")
    for index, name in enumerate(names):
        each = model.encode_text(model.tokenize(synonyms_of(name)))  # (S, P, D)
        direction = F.normalize(F.normalize(each, dim=-1).mean(dim=0), dim=-1)
        torch.testing.assert_close(found[index], direction * each.norm(dim=-1).mean(dim=0)[:, None])
    torch.testing.assert_close(found[1], model.encode_text(model.tokenize(["dog"]))[0])


def test_mean_is_differentiable() -> None:
    model = tiny(synonyms="mean").train()
    features = model.encode_text(model.tokenize(["sofa, couch", "dog"]))
    features[0].sum().backward()
    assert model.clip.text is not None
    gradient = model.clip.text.token_embedding.weight.grad
    assert gradient is not None
    touched = gradient.abs().sum(dim=1).nonzero().flatten().tolist()
    tokens = [set(tokenize([word], TEMPLATES).flatten().tolist()) for word in ("sofa", "couch", "dog")]
    assert set(touched) == (tokens[0] | tokens[1]) - {0}
    assert torch.isfinite(gradient).all()


@torch.no_grad()
def test_many_prompts_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"thing {index}, object {index}" for index in range(5)]
    for rule in ("first", "mean"):
        model = tiny(synonyms=rule)
        whole = model.encode_text(model.tokenize(names))
        monkeypatch.setattr(segmenter_module, "PROMPTS_AT_ONCE", 3)
        torch.testing.assert_close(model.encode_text(model.tokenize(names)), whole, rtol=1e-5, atol=1e-5)
        monkeypatch.undo()
