"""A small data set to try physseg on: `python docs/examples/shapes.py shapes` draws it into a folder.

Images of 256 x 192 px with grass or sand and up to four shapes, label pictures of class ids, and `classes.txt`. A strip
at the top of each picture is labelled 255, no class. `train.txt` and `val.txt` name the images of two parts.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("grass", "sand", "red disc", "blue box", "yellow triangle")
COLOURS = ((70, 120, 50), (210, 180, 130), (190, 40, 40), (40, 70, 180), (220, 190, 40))
WIDTH, HEIGHT, IGNORE = 256, 192, 255


def scene(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """An image and its label picture."""
    ground = int(rng.integers(2))
    image, label = Image.new("RGB", (WIDTH, HEIGHT), COLOURS[ground]), Image.new("L", (WIDTH, HEIGHT), ground)
    draws = ImageDraw.Draw(image), ImageDraw.Draw(label)
    for _ in range(rng.integers(1, 5)):
        kind, size = int(rng.integers(2, 5)), int(rng.integers(20, 45))
        x, y = int(rng.integers(size, WIDTH - size)), int(rng.integers(size, HEIGHT - size))
        for draw, fill in zip(draws, (COLOURS[kind], kind), strict=True):
            if kind == 2:
                draw.ellipse((x - size, y - size, x + size, y + size), fill)
            elif kind == 3:
                draw.rectangle((x - size, y - size, x + size, y + size), fill)
            else:
                draw.polygon(((x, y - size), (x + size, y + size), (x - size, y + size)), fill)
    draws[1].rectangle((0, 0, WIDTH, 3), IGNORE)
    noise = rng.normal(0, 18, (HEIGHT, WIDTH, 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)), label


def main(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    names = [f"scene_{index:03d}" for index in range(count)]
    for name in names:
        image, label = scene(rng)
        image.save(folder / "images" / f"{name}.jpg", quality=92)
        label.save(folder / "labels" / f"{name}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    for part, chosen in (("train", names[: -count // 5]), ("val", names[-count // 5 :])):
        (folder / f"{part}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    print(f"wrote {count} images to {folder}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python docs/examples/shapes.py FOLDER [NUMBER_OF_IMAGES]")
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100)
