"""A folder with everything that the commands and the code of the documentation name, but small."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from annotated import put
from conftest import Result, camvid_folder
from documented import ROOT, blocks
from onnx_files import write_onnx
from PIL import Image
from published import CASES, palette, picture, raw_ids, table
from reference.names import official_tensors
from safetensors.torch import save_file

from pinmem_core.config import MemoryConfig, ModelConfig
from pinmem_core.data.cards import demo
from pinmem_core.data.catalog import get_card
from pinmem_core.export.official import MEMORY
from pinmem_core.images import write_png
from pinmem_core.models import Segmenter
from pinmem_core.synthetic import draw_scene

_TINY = (
    *("--iterations", "10", "--batch", "2", "--crop", "64", "--device", "cpu"),
    *("--set", "model.backbone=tiny", "--set", "model.feature_dim=16"),
    *("--set", "model.memory.init_batches=1"),
)
_PUBLISHED = {
    "gtav": "gtav",
    "synthia": "synthia",
    "cityscapes": "cityscapes",
    "bdd100k": "bdd100k",
    "mapillary": "mapillary 1.2",
    "idd-lite": "idd-lite",
}
"""Datasets, and the archives of `published` that they are prepared from."""
_TOML = {"docs/fair.md": "methods.toml", "docs/train.md": "study.toml"}
"""Files whose content a page shows."""
_RUNS = {
    "RUN": "camvid:0001TP,demo:dusk",
    "OTHER-RUN": "camvid:0001TP,demo:dusk",
    "runs/first": "demo:cityday,demo:dusk",
    "runs/baseline": "demo:cityday,demo:dusk",
    "studies/seven-dinov2/runs/pinmem-0": "",
}
"""Runs, and the targets on which they are scored."""


def enter(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Go to the place, with its home folders and a small `demo`."""
    patch.chdir(root)
    for variable, folder in {"PINMEM_HOME": "home", "HOME": "", "TORCH_HOME": "torch"}.items():
        patch.setenv(variable, str(root / folder))
    patch.setenv("COLUMNS", "200")
    patch.setattr(demo, "IMAGES_PER_DOMAIN", {"train": 4, "val": 2})


def make_place() -> None:
    """Fill the working directory."""
    _make_photos()
    _make_raw_data()
    _make_weights()
    _need("data prepare gtav --accept-terms", "data prepare camvid --from CAMVID")
    _need(*(f"data prepare {name} --from raw/{name}" for name in _PUBLISHED if name != "gtav"))
    _need("data prepare demo", "data new-card mycity -o card.yaml")
    _need("data prepare mycity --card card.yaml --from mycity")
    for name, targets in _RUNS.items():
        _need(" ".join(("train --recipe demo", *_TINY, "-o", name)))
        if targets:
            _need(f"eval {name} --targets {targets} --no-pictures")
    Path("RUN/export").mkdir()
    write_onnx(Path("RUN/export/model.onnx"))
    write_onnx(Path("run.onnx"))
    for block in blocks():
        if block.language == "toml":
            Path(_TOML[block.page]).write_text(block.text)
    Path("docs").symlink_to(ROOT / "docs")


def copy_place(place: Path, target: Path) -> None:
    """Copy a place; large files, which nothing changes, become hard links."""

    def copy(file: str, copied: str) -> None:
        (os.link if Path(file).stat().st_size > 1e6 else shutil.copy)(file, copied)

    shutil.copytree(place, target, copy_function=copy, symlinks=True)


def tear_photo() -> None:
    """Add a photo whose end is missing."""
    put(Path("photos/torn.jpg"), Path("street.jpg").read_bytes()[:-200])


def change_label() -> None:
    """Change the classes of a prepared label, and the digest of the dataset."""
    label = next(Path("home/datasets/camvid/labels").rglob("*.png"))
    write_png(label, np.zeros((72, 96), np.uint8))
    summary = Path("home/datasets/camvid/dataset.json")
    summary.write_text(summary.read_text().replace('"digest": "', '"digest": "0'))


def unfinish_run() -> None:
    """Make `RUN` an unfinished run, here and among the runs of the home folder."""
    Path("RUN/scores.json").unlink()
    shutil.copytree("RUN", "home/runs/RUN")


def _need(*commands: str) -> None:
    for command in commands:
        done = Result(*command.split())
        assert done.code == 0, f"{command}: {done.err}"


def _make_photos() -> None:
    street = draw_scene("cityday", 0).image
    for name in ("street", "photo", "photos/street", "photos/night/drive 1", "drives/a/0"):
        for suffix in ("png",) if "drives" in name else ("jpg",):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(street).save(f"{name}.{suffix}")
    scan = Image.fromarray(street)
    scan.save("photos/scan.tif", save_all=True, append_images=[scan])
    put(Path("photos/notes.txt"), "no image")
    shutil.copytree("drives/a", "FOLDER")
    av = pytest.importorskip("av")
    with av.open("drive.mp4", "w") as video:
        stream = video.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt = *street.shape[:2], "yuv420p"
        frame = av.VideoFrame.from_ndarray(street, format="rgb24")
        video.mux([*stream.encode(frame), *stream.encode()])


def _make_raw_data() -> None:
    camvid_folder(Path("CAMVID"), {"0001TP": 6, "0006R0": 6, "0016E5": 6, "Seq05VD": 6}, (96, 72))
    shutil.copytree("CAMVID", "CamVid")
    Path("raw").mkdir()
    for name, case in _PUBLISHED.items():
        CASES[case]().write(Path("raw", name))
    shutil.copytree("raw/cityscapes", "data")
    _make_gtav(Path("raw/gtav"))
    for drive in ("north", "south"):
        for number in range(6):
            scene, stem = draw_scene("cityday", number), f"{drive}/{drive}_{number}"
            put(Path(f"mycity/images/{stem}.jpg"), b"")
            Image.fromarray(scene.image).save(f"mycity/images/{stem}.jpg")
            write_png(Path(f"mycity/labels/{stem}.png"), np.minimum(scene.label, 4))
    put(Path("mycity/classes.txt"), "track\nverge\nvehicle\nsurroundings\nsky\n")


def _make_gtav(first_part: Path) -> None:
    """Put all ten parts where downloads go."""
    Path("home/archives").mkdir(parents=True)
    archives = first_part.rename("home/archives/gtav")
    ids = table("gtav", "ids")
    for part, frame in enumerate(get_card("gtav").split_lists["train"][10:19], start=2):
        content = {"images": picture(part), "labels": palette(raw_ids(ids, part))}
        for kind, data in content.items():
            with zipfile.ZipFile(archives / f"{part:02}_{kind}.zip", "w") as archive:
                archive.writestr(f"{kind}/{frame}.png", data)


class _RunsCode:
    """A value whose pickle runs a command when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("true",)


def _make_weights() -> None:
    """Write random weights in the form of those that are published."""
    mobilenet = torchvision.models.mobilenet_v2().state_dict()
    for name in ("mobilenet_v2.safetensors", "mobilenet_v2_imagenet.safetensors"):
        save_file(mobilenet, name)
    vit = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    save_file({name: t.half() for name, t in vit.items()}, "dinov2_vits14_f16.safetensors")
    config = ModelConfig(backbone="resnet50", feature_dim=16, memory=MemoryConfig())
    with torch.device("meta"):
        shapes = official_tensors(Segmenter(config))
    state = {
        f"module.{name}": torch.full((), n / 1000).to(t.dtype).expand(t.shape)
        for n, (name, t) in enumerate(shapes.items())
    }
    memory = state.pop(f"module.{MEMORY}")
    torch.save({"state_dict": state, "memory": memory, "epoch": 40}, "last.pth")
    torch.save(state, "weights.pth")
    torch.save({"state_dict": state, "args": _RunsCode()}, "run-me.pth")
