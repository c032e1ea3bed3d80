"""Draw what a class stores and what it decodes to, for several parameterisations of one data set.

    python benchmarks/stored_and_decoded.py --dataset cifar10 --out docs/stored_and_decoded.png

Real training images are encoded, all ways from the same budget of one image per class; half of each picture is stored
numbers, half the samples that networks see.
"""

import argparse
from pathlib import Path

from PIL import Image

from potstill.data import load_dataset
from potstill.files import write_atomically
from potstill.sets.export.pictures import VIEWS, image_grid, png, side_by_side
from potstill.sets.parameterisations import parse
from potstill.sets.synthetic import SyntheticSet, initial_images
from potstill.spec import LabelledDataset

WAYS = ("tiles:rows=3,columns=3", "half_chroma:luma=10,chroma=5", "dct:luma=100,chroma=25")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--ways", nargs="+", default=WAYS, metavar="PARAMETERISATION")
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = load_dataset(options.dataset)
    grids, headings = [], []
    for way in options.ways:
        synthetic = encoded(data, way)
        for view in VIEWS:
            shown = {"per_class": options.per_class, "max_classes": options.classes, "view": view}
            grids.append(image_grid(synthetic, names=view == "stored", **shown))
            headings.append(synthetic.way.name if view == "stored" else view)
    pairs = [side_by_side(grids[i : i + 2], headings[i : i + 2]) for i in range(0, len(grids), 2)]
    write_atomically(options.out, png(stacked(pairs)))


def encoded(data: LabelledDataset, way: str) -> SyntheticSet:
    """Real images of each class, stored that way within the budget of one."""
    parameterisation = parse(way).for_data(data.train, data.spec)
    images = initial_images(data.train, data.spec, ipc=1, parameterisation=parameterisation)
    return SyntheticSet(images, data.spec, parameterisation, ipc=1)


def stacked(pictures: list[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


if __name__ == "__main__":
    main()
