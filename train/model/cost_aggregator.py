"""CAT-Seg's cost aggregation: refine image-text similarities over space, then over classes (Cho et al., 2303.11797).

Where the reference concatenates guidance to the cost and projects both, the two halves of the weight are applied apart:
image guidance is the same for every class and text guidance for every position, so their half is computed once and
added. Everything between the first convolution and the decoder lives in one layout, (B, T, h, w, C): image, class,
row, column, channel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bounded import Bounded
from .config import SegmenterConfig
from .decoder import Decoder

# The logit of classes that the preselection left out.
ABSENT_LOGIT = -100.0

# Values that a block holds at its peak for each value of its input: the MLP's four before and after its activation,
# norms, residuals, and the output.
HELD_PER_VALUE = 12


class GuidedProjection(nn.Module):
    """Queries and keys from [cost, guidance], values from the cost alone."""

    def __init__(self, dim: int, guidance_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.q = nn.Linear(dim + guidance_dim, dim)
        self.k = nn.Linear(dim + guidance_dim, dim)
        self.v = nn.Linear(dim, dim)

    def forward(self, cost: Tensor, guidance: Tensor) -> Tensor:
        """cost (..., C) and guidance (..., G), which broadcasts over cost, to queries, keys, values (..., 3 C)."""
        dim = self.dim
        of_cost = torch.cat([self.q.weight[:, :dim], self.k.weight[:, :dim], self.v.weight])
        of_guidance = torch.cat([self.q.weight[:, dim:], self.k.weight[:, dim:]])
        shared = F.linear(guidance, of_guidance, torch.cat([self.q.bias, self.k.bias]))
        shared = torch.cat([shared, self.v.bias.expand(*shared.shape[:-1], dim)], dim=-1)
        return F.linear(cost, of_cost).add_(shared)


class SpatialBlock(nn.Module):
    """One Swin block on every class slice, without relative position bias (Liu et al. 2021, guided)."""

    def __init__(self, dim: int, guidance_dim: int, *, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GuidedProjection(dim, guidance_dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (B, T, h, w, C), guidance (B, 1, h, w, G), already normalised."""
        projected = torch.unflatten(self.attn(self.norm1(x), guidance).flatten(0, 1), -1, (3, self.heads, -1))
        rows, columns = (window_sizes(size, self.window, self.shift) for size in x.shape[2:4])
        x = x + self.proj(attend_in_rectangles(projected, rows, columns)).view_as(x)
        fed: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return fed


class SpatialAggregation(Bounded):
    """Two Swin blocks, the second one shifted by half a window."""

    def __init__(self, dim: int, guidance_dim: int, *, heads: int, window: int) -> None:
        super().__init__()
        self.block_1 = SpatialBlock(dim, guidance_dim, heads=heads, window=window, shift=0)
        self.block_2 = SpatialBlock(dim, guidance_dim, heads=heads, window=window, shift=window // 2)
        self.guidance_norm = nn.LayerNorm(guidance_dim)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (B, T, h, w, C), guidance (B, h, w, G)."""
        guidance = self.guidance_norm(guidance)[:, None]

        def refine(classes: Tensor) -> Tensor:
            refined: Tensor = self.block_2(self.block_1(classes, guidance), guidance)
            return refined

        return self.in_pieces(refine, x, 1, HELD_PER_VALUE * x[:, 0].nbytes)


class ClassAggregation(Bounded):
    """Linear attention over the classes at every (pooled) position (Katharopoulos et al. 2020, feature map elu + 1)."""

    def __init__(self, dim: int, guidance_dim: int, *, heads: int, pooling: int, pad_len: int) -> None:
        super().__init__()
        self.heads, self.pooling, self.pad_len = heads, pooling, pad_len
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GuidedProjection(dim, guidance_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.padding_token = nn.Parameter(torch.zeros(dim)) if pad_len else None
        self.padding_guidance = nn.Parameter(torch.zeros(guidance_dim)) if pad_len else None

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (B, T, h, w, C), guidance (B or 1, T, G). Pooled in training only."""
        if not self.training:
            return self.in_pieces(lambda rows: self._refine(rows, guidance), x, 2, HELD_PER_VALUE * x[:, :, 0].nbytes)
        return self._refine(x, guidance)

    def _refine(self, x: Tensor, guidance: Tensor) -> Tensor:
        batch, _, height, width, _ = x.shape
        pooling = self.pooling if self.training else 1
        pooled = _to_tokens(F.avg_pool2d(_to_maps(x), pooling), batch) if pooling > 1 else x
        rows, columns = pooled.shape[2:4]
        tokens = pooled.flatten(2, 3).transpose(1, 2).contiguous()  # (B, positions, T, C)
        tokens = tokens + self._attend(self.norm1(tokens), guidance[:, None])
        tokens = tokens + self.fc2(F.relu(self.fc1(self.norm2(tokens))))
        refined = torch.unflatten(tokens.transpose(1, 2), 2, (rows, columns))
        if pooling > 1:
            maps = F.interpolate(_to_maps(refined), size=(height, width), mode="bilinear", align_corners=True)
            refined = _to_tokens(maps, batch)
        return x + refined

    def _attend(self, tokens: Tensor, guidance: Tensor) -> Tensor:
        """(B, N, T, C) with guidance (B or 1, 1, T, G): every class gathers from all classes and the padding rows."""
        padding = max(0, self.pad_len - tokens.shape[2])
        query, key, value = torch.unflatten(self.attn(tokens, guidance), -1, (3, self.heads, -1)).unbind(-3)
        query, key = F.elu(query) + 1, F.elu(key) + 1
        key_sum = key.sum(dim=2)  # (B, N, H, d)
        key_value = torch.einsum("bnthd,bnthv->bnhdv", key, value)
        if self.padding_token is not None and self.padding_guidance is not None:
            # All padding rows are equal: their share is a multiple of one, and what they would gather is never used.
            # No row, multiple 0: gradients of zero rather than none, which DistributedDataParallel would wait for.
            row = self.attn(self.norm1(self.padding_token), self.padding_guidance).view(3, self.heads, -1)
            row_key, row_value = F.elu(row[1]) + 1, row[2]
            key_sum = key_sum + padding * row_key
            key_value = key_value + padding * row_key[:, :, None] * row_value[:, None, :]
        weight = 1 / (torch.einsum("bnthd,bnhd->bnth", query, key_sum) + 1e-6)
        return (torch.einsum("bnthd,bnhdv->bnthv", query, key_value) * weight[..., None]).flatten(-2)


class AggregatorLayer(Bounded):
    """Aggregation over space, then over classes."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        dim, guidance_dim, heads = config.hidden_dim, config.guidance_dim, config.num_heads
        self.spatial = SpatialAggregation(dim, guidance_dim, heads=heads, window=config.window)
        self.classes = ClassAggregation(dim, guidance_dim, heads=heads, pooling=config.pooling, pad_len=config.pad_len)

    def forward(self, x: Tensor, image_guidance: Tensor, text_guidance: Tensor) -> Tensor:
        return self.run_part(self.classes, self.spatial(x, image_guidance), text_guidance)


class CostAggregator(nn.Module):
    """Dense image features and class texts to logits at four times the patch grid."""

    def __init__(self, embed_dim: int, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.cost_embedding = nn.Conv2d(len(config.templates), config.hidden_dim, kernel_size=7, padding=3)
        self.image_guidance = nn.Conv2d(embed_dim, config.guidance_dim, kernel_size=3, padding=1)
        self.text_guidance = nn.Linear(embed_dim, config.guidance_dim)
        self.layers = nn.ModuleList(AggregatorLayer(config) for _ in range(config.num_layers))
        self.decoder = Decoder(config)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        decoder_guidance: tuple[Tensor, Tensor],
        classes_kept: int | None = None,
    ) -> Tensor:
        """Logits (B, T, 4 h, 4 w), `ABSENT_LOGIT` for the classes that an image does not keep.

        Args:
            image_features: (B, D, h, w) dense patch features, not normalised.
            text_features: (T, P, D), not normalised.
            decoder_guidance: CLIP levels (B, G1, 2 h, 2 w) and (B, G2, 4 h, 4 w).
            classes_kept: Number of classes to aggregate per image, those that `preselect` gives. None: `pad_len`.
        """
        num_classes = len(text_features)
        text = text_features[None]
        cost = cost_volume(image_features, text)
        chosen = None
        kept = self.config.classes_kept(num_classes, classes_kept)
        if kept < num_classes:
            chosen = preselect(cost, kept)
            text = F.normalize(text_features, dim=-1)[chosen]  # (B, kept, P, D); the reference normalises only here
            cost = cost.take_along_dim(chosen[:, :, None, None, None], dim=1)
        x = _to_tokens(self.cost_embedding(cost.flatten(0, 1)), len(cost))
        image_guidance = F.relu(self.image_guidance(image_features)).permute(0, 2, 3, 1)
        text_guidance = text.mean(dim=2)
        text_guidance = text_guidance / text_guidance.norm(dim=-1, keepdim=True)
        text_guidance = F.relu(self.text_guidance(text_guidance))
        for layer in self.layers:
            x = layer(x, image_guidance, text_guidance)
        logits: Tensor = self.decoder(x, decoder_guidance)
        if chosen is None:
            return logits
        everything = logits.new_full((len(logits), num_classes, *logits.shape[2:]), ABSENT_LOGIT)
        return everything.scatter(1, chosen[:, :, None, None].expand_as(logits), logits)


def cost_volume(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine of every patch with every class text in every prompt.

    Image (B, D, h, w) and text (B or 1, T, P, D) to (B, T, P, h, w). docs/method.md, Baseline; CAT-Seg, Eq. 1.
    """
    image = F.normalize(image_features, dim=1)
    text = F.normalize(text_features, dim=-1)
    cosine = text.flatten(1, 2) @ image.flatten(2)
    return cosine.view(len(image), *text.shape[1:3], *image.shape[2:])


def preselect(cost: Tensor, count: int) -> Tensor:
    """Per image the `count` classes with the highest maximal cosine over positions and prompts: indices (B, count)."""
    return cost.flatten(2).amax(dim=2).topk(count, dim=1, sorted=False).indices


def window_sizes(size: int, window: int, shift: int) -> list[int]:
    """Lengths of the pieces into which windows of `window` shifted by `shift` cut an axis of `size`.

    An axis that fits into one window is not shifted, as in Swin.

    >>> window_sizes(24, 12, 0), window_sizes(24, 12, 6), window_sizes(12, 12, 6)
    ([12, 12], [6, 12, 6], [12])
    """
    shift = shift if size > window else 0
    sizes = [shift] if shift else []
    full, rest = divmod(size - shift, window)
    return sizes + [window] * full + ([rest] if rest else [])


def attend_in_rectangles(projected: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """Self-attention inside each rectangle of a grid of cuts.

    A cyclically shifted window with Swin's mask lets pixels see each other only if they were neighbours before the
    shift: exactly attention inside the rectangles that the shifted cuts leave, without rolling, without a mask, and
    with half of the pairs. `projected` (N, h, w, 3, H, d) holds queries, keys, values; returns (N, h, w, H * d).

    Rectangles of one size share one call: of the nine that shifted windows leave of a 24x24 grid there are four sizes.
    """
    bands = [torch.split(band, columns, dim=2) for band in torch.split(projected, rows, dim=1)]
    by_size: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, height in enumerate(rows):
        for j, width in enumerate(columns):
            by_size.setdefault((height, width), []).append((i, j))
    attended: dict[tuple[int, int], Tensor] = {}
    for places in by_size.values():
        parts = torch.stack([bands[i][j] for i, j in places])
        query, key, value = parts.flatten(0, 1).flatten(1, 2).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        attended |= zip(places, found.view(*parts.shape[:4], -1), strict=True)
    return torch.cat([torch.cat([attended[i, j] for j in range(len(columns))], 2) for i in range(len(rows))], 1)


def _to_maps(x: Tensor) -> Tensor:
    """(B, T, h, w, C) to (B * T, C, h, w): a view, channels last in memory."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def _to_tokens(maps: Tensor, batch: int) -> Tensor:
    """(B * T, C, h, w) to (B, T, h, w, C)."""
    return torch.unflatten(maps.permute(0, 2, 3, 1).contiguous(), 0, (batch, -1))
