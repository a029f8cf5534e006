"""The patch alignment head of L^sac: how similar is each image patch to each class text (paper Fig. 4, Eq. 2)?"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# CLIP's start and bound of the learnable scale 1 / temperature (Radford et al. 2021, section 2.5).


class AlignmentHead(nn.Module):
    """`sim(i, j) / temperature` between linear projections of patch tokens and of class texts.

    The temperature is learned as the logarithm of its inverse and never falls below 1 / 100. With `normalize` (the
    default; the paper is silent) both projections are brought to unit length, so that similarities are cosines.
    """

    def __init__(self, embed_dim: int, dim: int, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.image_projection = nn.Linear(embed_dim, dim, bias=False)
        self.text_projection = nn.Linear(embed_dim, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, patches: Tensor, class_texts: Tensor) -> Tensor:
        """Patches (B, N, D) and class texts (T, D) to similarities divided by the temperature, float32 (B, N, T)."""
        # At temperature 1 / 100 half precision is .4 off here, and L^sac 2 %: only the projections' inputs may have it.
        with torch.autocast(patches.device.type, enabled=False):
            patches, class_texts = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (patches, class_texts))
            image, text = self.image_projection(patches), self.text_projection(class_texts)
            if self.normalize:
                image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
            similarity: Tensor = self.scale() * (image @ text.T)
        return similarity

    def scale(self) -> Tensor:
        """1 / temperature, at most 100.

        The parameter itself is held below the bound, as CLIP does: a bound on the result would end its gradient.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(100.0))
        return self.log_scale.exp()
