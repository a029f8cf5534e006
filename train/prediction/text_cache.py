"""Text features of large vocabularies, kept on disk: 847 classes in 80 templates are minutes of a CPU's time.

    CACHE/texts/KEY      sha256 of the rest (32 bytes), then the features (T, P, D) as safetensors

CACHE is that of pretrained weights (`weights/cache.py`). KEY is a hash of all that the features follow from.
"""

import hashlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version

from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from ... import __version__
from ...common.atomic import atomic_write
from ...common.documents import digest_of_json
from ...common.regular_files import read_regular
from ...common.settings import to_dict
from ..model.inference import PRECISION, class_texts
from ..weights.cache import cache_folder
from .load_run import LoadedRun

MIN_PROMPTS = 100
"""Of fewer prompts nothing is kept: they take about a second on a CPU."""
MAX_BYTES = 2 * 2**30
"""Most that all kept features take; 847 classes in 80 templates are 139 MB. The oldest go first."""


def cached_texts(loaded: LoadedRun, classes: Sequence[str]) -> Tensor:
    """`class_texts` of a model as it was loaded, bit for bit, read from the cache where they are there.

    A damaged file is replaced. A cache that cannot be written is one line on standard error.
    """
    model = loaded.model
    if len(classes) * len(model.config.templates) < MIN_PROMPTS:
        return class_texts(model, classes)
    device = next(model.parameters()).device
    path = cache_folder() / "texts" / _key(loaded, classes, device.type)
    with suppress(OSError):
        content = read_regular(path, max_bytes=MAX_BYTES)
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            # Cloned into PyTorch's own memory: last bits of what follows may depend on where the features lie.
            return load(content[32:])["texts"].clone().to(device)
    texts = class_texts(model, classes)
    try:
        payload = save({"texts": texts.cpu()})
        atomic_write(path, hashlib.sha256(payload).digest() + payload)
        total = 0
        for file in sorted(path.parent.iterdir(), key=lambda file: -file.stat().st_mtime):
            total += file.stat().st_size
            if total > MAX_BYTES:
                file.unlink()
    except OSError as error:
        tqdm.write(f"note: text features are not kept: {path.parent}: {error.strerror or error}", file=sys.stderr)
    return texts


def _key(loaded: LoadedRun, classes: Sequence[str], device: str) -> str:
    """The hash of the weights' file was verified when they were loaded, so that they need not be hashed again."""
    versions = [__version__, version("torch"), version("open_clip_torch")]
    settings = {"weights": loaded.weights, "model": to_dict(loaded.model.config), "precision": PRECISION}
    return digest_of_json({**settings, "classes": list(classes), "device": device, "versions": versions})
