"""The figure at the top of the README: `python docs/overview.py physseg_demo`, the folder that `physseg demo` leaves.

Each row is a generated scene of the demo's validation part, which the model has not seen: the image, the structures of
the image and of its label map, the words that were asked for, and the prediction. All of it is what commands write.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from physseg.pipeline.inspect.drawing.palette import class_colours
from PIL import Image, ImageChops, ImageDraw, ImageFont

OUT = Path(__file__).with_name("overview.png")
SCENES = ("000000000000", "000000000001")
"""The first two of the split, not chosen ones."""
PANEL = (264, 264)
"""Width and height of a panel, in px."""
GAP, CAPTION, PAPER, INK = 16, 36, (255, 255, 255), (30, 30, 30)


def physseg(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "physseg", *map(str, arguments)], check=True)


def panel(picture: Image.Image) -> Image.Image:
    """The picture, as large as fits into a panel, in its middle."""
    scale = min(PANEL[0] / picture.width, PANEL[1] / picture.height)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    out = Image.new("RGB", PANEL, PAPER)
    out.paste(picture, ((PANEL[0] - picture.width) // 2, (PANEL[1] - picture.height) // 2))
    return out


def words_of(words: list[str], height: int) -> Image.Image:
    """The words below each other, each beside its colour."""
    out = Image.new("RGB", (170, height), PAPER)
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(16)
    step = min(28, height // len(words))
    top = (height - step * len(words)) // 2
    for row, (word, colour) in enumerate(zip(words, class_colours(words), strict=True)):
        y = top + row * step
        draw.rectangle((14, y + 3, 29, y + 18), tuple(map(int, colour)), outline=(120, 120, 120))
        draw.text((38, y), word, INK, font)
    return out


def layers(folder: Path, *names: str) -> Image.Image:
    """Structures, each as `physseg inspect` draws it over the dimmed image, in one picture."""
    first, *others = (Image.open(folder / f"{name}.png").convert("RGB") for name in names)
    for other in others:
        first = ImageChops.lighter(first, other)
    return first


def main(demo: Path) -> None:
    words = (demo / "scenes" / "classes_val.txt").read_text(encoding="utf-8").split("\n")
    words = [word for word in words if word]
    images = [demo / "scenes" / "images" / "val" / f"{scene}.jpg" for scene in SCENES]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        store = work / "val.zarr"
        physseg("preprocess", demo / "val.parquet", store, "--short-edge", 192, "--structures", "canny,mask_edges,sift")
        samples = [text for scene in SCENES for text in ("--sample", scene)]
        physseg("inspect", store, *samples, "--out", work / "structures")
        classes = ("--classes-file", demo / "scenes" / "classes_val.txt")
        physseg("predict", demo / "run", *images, *classes, "--no-windows", "--device", "cpu", "--out", work / "labels")
        rows = []
        for scene, image in zip(SCENES, images, strict=True):
            picture = Image.open(image)
            overlay = Image.open(work / "labels" / f"{scene}_overlay.png").convert("RGB")
            prediction = overlay.crop((0, 0, round(picture.width * overlay.height / picture.height), overlay.height))
            drawn = work / "structures" / scene
            edges, keypoints = layers(drawn, "canny", "mask_edges"), layers(drawn, "sift")
            rows.append([panel(each) for each in (picture, edges, keypoints, prediction)])
    height = len(rows) * (PANEL[1] + GAP) - GAP
    columns: list[tuple[str, list[Image.Image]]] = [
        (caption, [row[index] for row in rows])
        for index, caption in enumerate(("image", "structures: edges", "structures: keypoints", "prediction"))
    ]
    columns.insert(3, ("words", [words_of(words, height)]))
    page = Image.new("RGB", (sum(each[0].width + GAP for _, each in columns) + GAP, CAPTION + height + GAP), PAPER)
    draw, font, x = ImageDraw.Draw(page), ImageFont.load_default(18), GAP
    for caption, panels in columns:
        draw.text((x + (panels[0].width - draw.textlength(caption, font)) // 2, 8), caption, INK, font)
        for row, each in enumerate(panels):
            page.paste(each, (x, CAPTION + row * (PANEL[1] + GAP)))
        x += panels[0].width + GAP
    exact = [value for colour in class_colours(words).tolist() for value in colour]  # of few pixels, so named
    palette = Image.new("P", (1, 1))
    palette.putpalette((page.quantize(256 - len(words)).getpalette() or []) + exact)
    page.quantize(palette=palette, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(f"wrote {OUT}: {page.width} x {page.height} px, {OUT.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/overview.py DEMO_FOLDER")
    main(Path(sys.argv[1]))
