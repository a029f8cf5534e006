"""From class names to token ids: prompt templates, the synonym rule, CLIP's tokeniser."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.documents import read_text
from ...common.errors import ConfigError

TEMPLATE = "A photo of a {} in the scene"

Synonyms = Literal["first", "mean"]
"""How comma-separated synonyms name a class: the first does, or all do and the mean of their text features is taken."""


def prompt_name(name: str) -> str:
    """The first of comma-separated synonyms, stripped: the name in prompts under the rule "first".

    >>> prompt_name("sofa, couch")
    'sofa'
    """
    return name.split(",", maxsplit=1)[0].strip()


def synonyms_of(name: str) -> tuple[str, ...]:
    """All comma-separated synonyms, stripped, each once; empty ones left out.

    >>> synonyms_of("sofa, couch,, sofa")
    ('sofa', 'couch')
    """
    return tuple(dict.fromkeys(word for part in name.split(",") if (word := part.strip())))


def read_templates(prompts: str) -> tuple[str, ...]:
    """The templates that a setting or an option stands for.

    It is a template itself, which has {} for the name, the name of a set, "single" or "imagenet" (the 80 of OpenAI's
    CLIP), or a file with one template a line. Whoever takes a template checks what it looks like. Raises ConfigError
    for what is none of them, or an empty file.
    """
    if "{}" in prompts:
        return (prompts,)
    if prompts == "single":
        return (TEMPLATE,)
    if prompts == "imagenet":
        return tuple(template("{}") for template in _open_clip_file("zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES)
    expected = f'"single", "imagenet", a template, or a text file with one template a line, such as: {TEMPLATE}'
    lines = read_text(Path(prompts), ConfigError, expected).splitlines()
    templates = tuple(line.strip() for line in lines if line.strip())
    if not templates:
        raise ConfigError(f"{prompts}: expected one template a line, got an empty file")
    return templates


def clip_tokens(prompts: Sequence[str], context_length: int = 77) -> Tensor:
    """Token ids of prompts by CLIP's byte-pair tokeniser, int64 (M, L), L the length of the longest prompt.

    Positions after a prompt's end-of-text token hold 0; under the causal mask they cannot matter, so L need not be the
    whole context. Raises ConfigError for a prompt longer than the context, which CLIP's own would cut without a word.
    """
    tokenizer = _tokenizer()
    rows = [[tokenizer.sot_token_id, *tokenizer.encode(prompt), tokenizer.eot_token_id] for prompt in prompts]
    longest = max(range(len(rows)), key=lambda index: len(rows[index]))
    if len(rows[longest]) > context_length:
        too_long = f"{len(rows[longest])} tokens, expected at most {context_length}"
        raise ConfigError(f"prompt {prompts[longest]!r}: {too_long}", hint="shorten the class name or the template")
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True)


def tokenize(
    names: Sequence[str],
    templates: Sequence[str],
    *,
    synonyms: Synonyms = "first",
    encode: Callable[[Sequence[str]], Tensor] = clip_tokens,
) -> Tensor:
    """Token ids of every name in every template.

    Args:
        names: T class names, each with its synonyms separated by commas.
        templates: P templates, each with one {} for the name.
        synonyms: Which of a class's synonyms are asked for.
        encode: Prompts to token ids (M, L), of which the first is never 0 (`Backbone.tokenize`).

    Returns:
        int64 (T, P, L) under the rule "first". Under "mean" (T, S, P, L), S the largest number of synonyms; a class
        with fewer has rows of zeros at the end, which are no prompts.

    Raises:
        ConfigError: There are no names, one is empty, or a prompt is longer than the context.
    """
    if not names:
        raise ConfigError("class names: expected at least one, got none")
    empty = [index for index, name in enumerate(names) if not prompt_name(name)]
    if empty:
        raise ConfigError(f"class names: number {empty[0]} is empty ({names[empty[0]]!r})")
    if synonyms == "first":
        return _token_rows([prompt_name(name) for name in names], templates, encode)
    words = [synonyms_of(name) for name in names]
    rows = _token_rows([word for of_class in words for word in of_class], templates, encode)
    counts = [len(of_class) for of_class in words]
    return torch.nn.utils.rnn.pad_sequence(list(torch.split(rows, counts)), batch_first=True)


def mean_over_synonyms(features: Tensor, present: Tensor) -> Tensor:
    """Text features of each class, averaged over its synonyms.

    The direction is that of the mean of unit vectors, as prompts are usually averaged (Radford et al. 2021, section
    3.1.4); the length is the mean length, so that a class of one name keeps its feature.

    `features` (M, D) are those of the prompts that `present` (T, S, P) bool marks among the rows of `tokenize`, in its
    order. Returns (T, P, D) float32.
    """
    features = features.float()
    lengths = features.norm(dim=-1, keepdim=True)
    # A mask would be read of the device to index by it.
    rows = (present.flatten().cumsum(0) - 1).clamp(min=0)
    each = torch.cat([features / lengths, lengths], dim=-1).index_select(0, rows)
    padded = torch.where(present[..., None], torch.unflatten(each, 0, present.shape), 0.0)
    mean = padded.sum(dim=1) / present.sum(dim=1)[..., None]
    return F.normalize(mean[..., :-1], dim=-1) * mean[..., -1:]


def _token_rows(words: Sequence[str], templates: Sequence[str], encode: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """Token ids (W, P, L) of every word in every template."""
    tokens = encode([template.replace("{}", word) for word in words for template in templates])
    return tokens.view(len(words), len(templates), -1)


@cache
def _tokenizer() -> Any:
    """open_clip's byte-pair tokeniser; its vocabulary ships with that package."""
    return _open_clip_file("tokenizer").SimpleTokenizer()


def open_clip_folder() -> Path:
    """Where the package open_clip lies. Raises ConfigError if it is not installed."""
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise ConfigError("open_clip is not installed", hint="pip install open_clip_torch")
    return Path(package.origin).parent


def _open_clip_file(name: str) -> ModuleType:
    """One file of open_clip by itself: importing the package brings in torchvision and timm, three seconds more.

    pyproject.toml bounds the versions, and a test looks whether the files are there.
    """
    spec = spec_from_file_location(f"open_clip_{name}", open_clip_folder() / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
