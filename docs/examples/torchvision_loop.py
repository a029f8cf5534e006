"""L^p and L^sac for a segmentation model that knows nothing of physseg: torchvision's LR-ASPP, in a loop of its own.

python docs/examples/torchvision_loop.py physseg_demo/train.zarr --epochs 2
"""

import argparse

import physseg
import torch
from physseg.losses import patch_alignment_loss, patch_weights, structure_loss, structure_targets
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation import lraspp_mobilenet_v3_large


class WithAuxiliaryHeads(nn.Module):
    """LR-ASPP, a 1x1 convolution for the structures, and an embedding of each class that patches are compared with."""

    def __init__(self, num_classes: int, num_structures: int) -> None:
        super().__init__()
        self.net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)
        self.structure_head = nn.Conv2d(40, num_structures, 1)  # on the features of stride 8
        self.patch_head = nn.Conv2d(960, 64, 1)  # on those of stride 16: a patch is 16 x 16 px
        self.class_embeds = nn.Parameter(torch.randn(num_classes, 64))  # a text encoder's, if there is one

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, T, S/8, S/8), structure logits (B, n, S/8, S/8), similarities (B, (S/16)², T) / temperature."""
        features = self.net.backbone(images)
        patches = functional.normalize(self.patch_head(features["high"]).flatten(2).mT, dim=-1)
        similarity = patches @ functional.normalize(self.class_embeds, dim=-1).T / 0.07
        return self.net.classifier(features), self.structure_head(features["low"]), similarity


def losses_of(model: WithAuxiliaryHeads, batch: dict[str, Tensor], ignore_index: int) -> dict[str, Tensor]:
    """Cross-entropy as ever, and the two losses of physseg beside it."""
    logits, structure_logits, similarity = model(batch["images"].float() / 127.5 - 1)
    labels = batch["labels"].long()
    logits = functional.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    targets, inside = structure_targets(batch["structures"], batch["valid"], structure_logits.shape[2:])
    cells, num_classes = (batch["cell_classes"], batch["cell_counts"]), similarity.shape[2]
    weights = patch_weights(*cells, num_classes, cells_per_patch=2, ignore_index=ignore_index)
    return {
        "segmentation": functional.cross_entropy(logits, labels, ignore_index=ignore_index),
        "structure": structure_loss(structure_logits, targets, inside),
        "alignment": patch_alignment_loss(similarity, weights),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    store = physseg.open_store(options.store)
    dataset = physseg.StoreDataset(store, crop=192, structures=("canny", "sift"))
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, drop_last=True)
    model = WithAuxiliaryHeads(len(store.classes), num_structures=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(options.epochs):
        dataset.set_epoch(epoch)  # another order, other crops
        for batch in loader:
            losses = losses_of(model, batch, store.vocabulary.ignore_index)
            optimizer.zero_grad()
            (losses["segmentation"] + losses["structure"] + losses["alignment"]).backward()
            optimizer.step()
            print(epoch, *(f"{name} {loss.item():.4f}" for name, loss in losses.items()))


if __name__ == "__main__":
    main()
