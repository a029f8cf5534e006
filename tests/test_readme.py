"""What the README and the other pages say of the code is what the code says."""

import re
from pathlib import Path

import pytest
from physseg.cli import app
from physseg.common import plugins
from physseg.pipeline.store.schema import LABEL_ARRAYS, STATUS, arrays_of
from physseg.structure_extractors.registry import build
from physseg.train.model.backbones.interface import find_architecture
from physseg.train.model.inference import InferenceSettings
from typer.main import get_command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_arrays_is_the_schemas() -> None:
    extractors = build(plugins.names("extractors"), {"superpoint": {"dense": True}})
    of_layers = [array for extractor in extractors for array in arrays_of(extractor)]
    lines = ["| array | layer | dtype | dimensions | fill | what |", "|---|---|---|---|---|---|"]
    for spec in (*LABEL_ARRAYS, *of_layers, STATUS):
        dims = ", ".join(("sample", *spec.dims))
        lines.append(f"| `{spec.name}` | {spec.layer or '-'} | {spec.dtype} | {dims} | {spec.fill} | {spec.meaning} |")
    assert "\n".join(lines) in (ROOT / "docs" / "store.md").read_text(encoding="utf-8"), "\n".join(lines)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.stem
)
def test_every_command_of_a_page_exists_and_takes_its_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^ {4}physseg (.+)$", text, re.MULTILINE)
    assert len(commands) >= 12 or page.stem != "README"
    for line in commands:
        words = line.split("#")[0].split()
        command = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        alone = command.name in ("plugins", "demo") and all(word.startswith("-") for word in words[:1])  # the table
        assert alone or not hasattr(command, "commands"), f"{line}: no such command"
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{line}: no option {word}"


def rows_of(page: str, first_cell: str) -> list[list[str]]:
    """Cells of a page's rows whose first cell begins in this way."""
    lines = (line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|"))
    rows = [[cell.strip() for cell in line] for line in lines]
    return [row for row in rows if re.match(first_cell, row[0])]


def test_the_pages_of_backbones_and_resolutions_say_what_the_architectures_say() -> None:
    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    rows = [row for row in rows_of(page, "`(ViT|EVA|PE|convnext)") if len(row) == 6]
    said = {name: row for row in rows for name in re.findall("`(.+?)`", row[0])}
    others = {name for name in plugins.names("backbones") if name.startswith(("ViT", "tiny"))}
    assert set(said) | others == set(plugins.names("backbones"))
    for name, (_, image, patch, *numbers, trained) in said.items():
        arch = find_architecture(name)
        assert [image, patch] == [f"{arch.image_px} px", str(arch.patch_px)], name
        assert numbers == [str(arch.embed_dim), str(arch.context_length)], name
        assert ("image encoder" in trained) == (arch.finetune == "all"), name
    resolutions = rows_of(page, r"\d+x\d+$")
    assert len(resolutions) == 5
    for grid, by_16, by_14, by_32, crop, windows, canvas in resolutions:
        for name, image in (("ViT-B-16", by_16), ("ViT-L-14-336", by_14), ("convnext_base_w_320", by_32)):
            arch = find_architecture(name).adapted(image_px=int(image))
            assert (f"{arch.grid}x{arch.grid}", str(arch.crop_px)) == (grid, crop)
        found = InferenceSettings().fitted(int(crop))
        assert (windows, canvas) == (f"{found.window_px}, {found.stride_px} px", f"{found.canvas_px} px")


def test_the_readme_leads_to_every_page() -> None:
    targets = set(re.findall(r"\]\(([^)#]+)[)#]", README))
    assert all((ROOT / target).exists() for target in targets if not target.startswith("http")), targets
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= targets, pages - targets
