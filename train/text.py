"""From class names to token ids: prompt templates, the synonym rule, CLIP's tokeniser."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError

TEMPLATE = "A photo of a {} in the scene"


def prompt_name(name: str) -> str:
    """The name used in prompts: the first of comma-separated synonyms, stripped.

    >>> prompt_name("sofa, couch")
    'sofa'
    """
    return name.split(",", maxsplit=1)[0].strip()


def tokenize(names: Sequence[str], templates: Sequence[str], *, context_length: int = 77) -> Tensor:
    """Token ids (T, P, L) int64 of every name in every template, cut to the longest prompt.

    Positions after a prompt's end-of-text token hold 0; under the causal mask they cannot matter, so L is the length of
    the longest prompt instead of the whole context. Raises ConfigError for no names, an empty name, or a prompt longer
    than the context (CLIP's own tokeniser would cut it without a word).
    """
    if not names:
        raise ConfigError("class names: expected at least one, got none")
    empty = [index for index, name in enumerate(names) if not prompt_name(name)]
    if empty:
        raise ConfigError(f"class names: number {empty[0]} is empty ({names[empty[0]]!r})")
    tokenizer = _tokenizer()
    prompts = [template.format(prompt_name(name)) for name in names for template in templates]
    rows = [[tokenizer.sot_token_id, *tokenizer.encode(prompt), tokenizer.eot_token_id] for prompt in prompts]
    longest = max(range(len(rows)), key=lambda index: len(rows[index]))
    if len(rows[longest]) > context_length:
        raise ConfigError(
            f"prompt {prompts[longest]!r}: {len(rows[longest])} tokens, expected at most {context_length}",
            hint="shorten the class name or the template",
        )
    tokens = torch.zeros(len(rows), len(rows[longest]), dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return tokens.view(len(names), len(templates), -1)


@cache
def _tokenizer() -> Any:
    """open_clip's byte-pair tokeniser; its vocabulary ships with that package.

    Its one file is loaded by itself: importing the package brings in torchvision and timm, three seconds for every
    command.
    """
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise ConfigError("open_clip is not installed", hint="pip install open_clip_torch")
    spec = spec_from_file_location("open_clip_tokenizer", Path(package.origin).with_name("tokenizer.py"))
    if spec is None or spec.loader is None:
        raise ConfigError("open_clip has no tokenizer.py", hint="pip install -U open_clip_torch")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()
