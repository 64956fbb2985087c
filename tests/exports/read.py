"""Reads the exports below a folder (`nnunet`, `coco`, `yolo-seg`, `imagefolder`, those that are there) with the
tools that they are for, and compares what these see with the labels of the first export that has PNG labels.

Called by `check`. Prints a line for each tool, and fails at the first difference.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

# Tools keep settings and caches in the home folder; those of the user stay as they are.
HOME = tempfile.mkdtemp()
os.environ.update(
    YOLO_CONFIG_DIR=HOME,
    YOLO_VERBOSE="False",
    HF_HOME=HOME,
    HF_DATASETS_OFFLINE="1",
    nnUNet_raw=HOME,
    nnUNet_preprocessed=HOME,
    nnUNet_results=HOME,
)

import numpy as np
from PIL import Image


def provenance(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "provenance.jsonl").open()]


def reference(root: Path) -> dict[tuple, np.ndarray]:
    """Class indices by (id, synthetic)."""
    for folder in [*root.glob("nnunet/Dataset*"), root / "imagefolder"]:
        if folder.is_dir():
            return {
                (line["id"], line["synthetic"]): np.asarray(Image.open(folder / line["label"]))
                for line in provenance(folder)
            }
    raise SystemExit(f"{root} has neither nnunet nor imagefolder, which hold the labels to compare with")


def check_png(folder: Path) -> None:
    for line in provenance(folder):
        for key in ("file", "label"):
            if key not in line:
                continue
            image = Image.open(folder / line[key])
            facts = json.loads(image.text["diffaug"])
            assert image.text["Software"].startswith("diffaug ")
            assert facts == {k: v for k, v in line.items() if k not in ("file", "label")}, line[key]
            assert facts["synthetic"] == ("digitalSourceType" in facts)


def nnunet(root: Path, labels: dict) -> str:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    (folder,) = root.glob("Dataset*")
    check_png(folder)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        verify_dataset_integrity(str(folder), num_processes=1)
    assert "Done" in said.getvalue(), said.getvalue()
    description = json.loads((folder / "dataset.json").read_text())
    first = sorted((folder / "imagesTr").iterdir())[0]
    reader = determine_reader_writer_from_dataset_json(description, str(first), verbose=False)()
    shape = reader.read_images([str(first)])[0].shape
    assert shape[0] == 3, shape
    splits = json.loads((folder / "splits_final.json").read_text())
    cases = {p.stem for p in (folder / "labelsTr").iterdir()}
    assert len(splits) == 1 and set(splits[0]["train"]) | set(splits[0]["val"]) == cases
    assert not set(splits[0]["train"]) & set(splits[0]["val"])
    synthetic = {Path(line["label"]).stem for line in provenance(folder) if line["synthetic"]}
    assert not synthetic & set(splits[0]["val"])
    return f"{folder.name}, integrity verified, {len(cases)} cases, reader {type(reader).__name__}, images {shape}"


def coco(root: Path, labels: dict) -> str:
    from pycocotools import mask
    from pycocotools.coco import COCO

    check_png(root)
    ids = {line["file"]: (line["id"], line["synthetic"]) for line in provenance(root)}
    instances = images = 0
    for path in sorted((root / "annotations").iterdir()):
        part = path.stem.removeprefix("instances_")
        with contextlib.redirect_stdout(io.StringIO()):
            data = COCO(str(path))
        assert len(data.imgs) == len([f for f in ids if f.startswith(part + "/")])
        for image in data.imgs.values():
            name = f"{part}/{image['file_name']}"
            assert Image.open(root / name).size == (image["width"], image["height"])
            found = np.zeros((image["height"], image["width"]), np.uint8)
            for annotation in data.loadAnns(data.getAnnIds(imgIds=image["id"])):
                pixels = data.annToMask(annotation)
                encoded = data.annToRLE(annotation)
                assert mask.area(encoded) == annotation["area"] == pixels.sum()
                assert mask.toBbox(encoded).tolist() == annotation["bbox"]
                found[pixels == 1] = annotation["category_id"]
                instances += 1
            assert (found == labels[ids[name]]).all(), name
            images += 1
    return f"{images} images, {instances} instances, all masks, boxes and areas equal"


def yolo(root: Path, labels: dict) -> str:
    from ultralytics.data import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygon2mask

    check_png(root)
    ids = {line["file"]: (line["id"], line["synthetic"]) for line in provenance(root)}
    data = check_det_dataset(str(root / "data.yaml"), autodownload=False)
    data["channels"] = 3
    worst, regions, images = 1.0, 0, 0
    for part in ("train", "val", "test"):
        if not data.get(part):
            continue
        files = [f for f in ids if f.startswith(f"images/{part}/")]
        loaded = YOLODataset(img_path=data[part], data=data, task="segment", augment=False, imgsz=64)
        assert len(loaded.labels) == len(files), (part, len(loaded.labels), len(files))
        for entry in loaded.labels:
            name = str(Path(entry["im_file"]).resolve().relative_to(root.resolve()))
            truth = labels[ids[name]]
            height, width = truth.shape
            found = np.zeros_like(truth)
            for kind, segment in zip(entry["cls"][:, 0], entry["segments"]):
                scaled = segment * np.array([width, height], np.float32)
                pixels = polygon2mask((height, width), [scaled.reshape(-1)], color=1)
                found[pixels == 1] = int(kind) + 1
                regions += 1
            union = ((found > 0) | (truth > 0)).sum()
            both = ((found == truth) & (truth > 0)).sum()
            worst = min(worst, both / union if union else 1.0)
            images += 1
        loaded[0]
    # What the loader leaves is none of the export.
    for cache in (root / "labels").glob("*.cache"):
        cache.unlink()
    assert worst == 1.0, worst
    return f"classes {data['names']}, {images} images, {regions} polygons, least IoU of an image {worst:.4f}"


def imagefolder(root: Path, labels: dict) -> str:
    from datasets import load_dataset

    check_png(root)
    data = load_dataset("imagefolder", data_dir=str(root), cache_dir=HOME)
    classes = json.loads((root / "classes.json").read_text())
    for part in data.values():
        assert set(part.column_names) == {"image", "mask", "id", "source", "synthetic", "prompt"}
        for row in part:
            truth = labels[row["id"], row["synthetic"]]
            assert (np.asarray(row["mask"]) == truth).all(), row["id"]
            assert row["image"].size == truth.shape[::-1] and row["image"].mode == "RGB"
            assert {str(v) for v in np.unique(truth)} <= set(classes)
    counts = {name: part.num_rows for name, part in data.items()}
    assert sum(counts.values()) == len(provenance(root))
    return f"{counts}, {sum(sum(p['synthetic']) for p in data.values())} synthetic, masks equal"


def main() -> None:
    root = Path(sys.argv[1])
    labels = reference(root)
    for name, check in [("nnunet", nnunet), ("coco", coco), ("yolo-seg", yolo), ("imagefolder", imagefolder)]:
        if (root / name).is_dir():
            print(f"{name}: {check(root / name, labels)}", flush=True)


if __name__ == "__main__":
    main()
