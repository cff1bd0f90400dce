from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mca_perception.datasets.coco import Annotation, CocoSplit, rasterise
from mca_perception.datasets.images import image_size, read_rgb
from mca_perception.errors import DatasetError, InvalidImageError

HEIGHT, WIDTH = 40, 60
SQUARE = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]]


def annotation(number: int, image: int = 1, **changes: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": image, "category_id": 7, "segmentation": SQUARE, "iscrowd": 0}
    return {**entry, **changes}


def document() -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "one.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [annotation(1, instance_id=3, product_id="B1"), annotation(2, category_id=2)],
        "categories": [{"id": 2, "name": "Tote"}, {"id": 7, "name": "Object"}],
    }


def write(root: Path, content: dict[str, Any], subset: str = "mix-object-tote", split: str = "test") -> Path:
    images = root / subset / "images"
    images.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(images / "one.jpg"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    cv2.imwrite(str(images / "two.png"), np.full((20, 30, 3), 90, np.uint8))
    (root / subset / f"{split}.json").write_text(json.dumps(content))
    return root


def test_reads_records_by_category_name(tmp_path) -> None:
    split = CocoSplit.open(write(tmp_path, document()))
    (record,) = split.records
    first, second = record.annotations
    assert (record.height, record.width, record.read().shape) == (HEIGHT, WIDTH, (HEIGHT, WIDTH, 3))
    assert split.categories == {"Object": 7, "Tote": 2}
    assert (first.category, first.instance_id, first.product_id) == ("Object", 3, "B1")
    assert (first.box, first.area) == ((10, 5, 30, 25), 400)
    assert (second.category, second.instance_id, second.product_id) == ("Tote", None, None)
    assert not split.skipped
    assert not split.corrected
    assert len(split.sha256) == 64


def test_subset_folder_itself_may_be_given(tmp_path) -> None:
    write(tmp_path, document(), subset="zoomed-out-tote-transfer-set", split="val")
    folder = tmp_path / "zoomed-out-tote-transfer-set"
    assert CocoSplit.open(folder, split="val").records
    assert CocoSplit.open(tmp_path, subset="zoomed-out-tote-transfer-set", split="val").records


def with_image(**changes: Any) -> dict[str, Any]:
    content = document()
    content["images"].append({"id": 2, "file_name": "two.png", "height": 20, "width": 30, **changes})
    return content


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file_name": "absent.jpg"}, "image file missing"),
        ({"file_name": "../images/one.jpg"}, "image path outside the folder"),
        ({"file_name": "/etc/hostname"}, "image path outside the folder"),
        ({"file_name": 5}, "image entry incomplete"),
        ({"id": 1}, "duplicate image id"),
        ({"id": "x"}, "image entry incomplete"),
        ({"width": 31}, "image size differs from the annotation file"),
        ({"height": 0}, "image larger than the limit"),
        ({"height": 10_000, "width": 10_000}, "image larger than the limit"),
        ({"height": None}, "image entry incomplete"),
    ],
)
def test_unusable_images_are_counted(tmp_path, changes, reason) -> None:
    split = CocoSplit.open(write(tmp_path, with_image(**changes)))
    assert [r.image_id for r in split.records] == [1]
    assert split.skipped == Counter({reason: 1})


def test_unreadable_image_is_counted(tmp_path) -> None:
    write(tmp_path, with_image())
    (tmp_path / "mix-object-tote" / "images" / "two.png").write_bytes(b"not an image")
    assert CocoSplit.open(tmp_path).skipped == Counter({"image not readable": 1})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": 1}, "duplicate annotation id"),
        ({"id": None}, "annotation without id"),
        ({"category_id": 99}, "annotation of unknown category"),
        ({"segmentation": []}, "annotation without segmentation"),
        ({"segmentation": None}, "annotation without segmentation"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation with an invalid polygon"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "annotation with an invalid polygon"),
        ({"segmentation": [[1, 2, 3, 4, 5, "x"]]}, "annotation with an invalid polygon"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "annotation with an invalid polygon"),
        ({"segmentation": [[5, 5, 9, 9, 5, 5]]}, "annotation of zero area"),
        ({"segmentation": [[-9, -9, -5, -9, -5, -5]]}, "annotation outside the image"),
        ({"segmentation": {"size": [1, 1], "counts": [1]}}, "annotation with an invalid RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5]}}, "annotation with an invalid RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [2400]}}, "annotation of zero area"),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "annotation with an invalid RLE"),
    ],
)
def test_unusable_annotations_are_counted(tmp_path, changes, reason) -> None:
    content = document()
    content["annotations"].append({**annotation(3), **changes})
    split = CocoSplit.open(write(tmp_path, content))
    assert [a.id for a in split.records[0].annotations] == [1, 2]
    assert split.skipped == Counter({reason: 1})


@pytest.mark.parametrize("image", [404, None, "1", [1], {}, 10**400])
def test_annotations_of_unknown_images_are_counted(tmp_path, image) -> None:
    content = document()
    content["annotations"].append(annotation(3, image=image))
    split = CocoSplit.open(write(tmp_path, content))
    assert [a.id for a in split.records[0].annotations] == [1, 2]
    assert split.skipped == Counter({"annotation of an unknown image": 1})


def test_annotations_of_images_left_out_are_counted_with_them(tmp_path) -> None:
    content = with_image(file_name="absent.jpg")
    content["annotations"] += [annotation(3, image=2), annotation(4, image=2)]
    split = CocoSplit.open(write(tmp_path, content))
    assert split.skipped == Counter({"image file missing": 1, "annotation of an image left out": 2})


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([{"id": 7, "name": "Object"}, {"id": 2, "name": "Tote"}], {"Object": 7, "Tote": 2}),
        ([{"id": 2, "name": "Tote"}, {"id": 7, "name": "Object"}, {"id": 9, "name": "Hand"}], None),
        ([{"id": 2, "name": "Object"}, {"id": 7, "name": "Tote"}], {"Object": 2, "Tote": 7}),
        ([{"id": 7.0, "name": "Object"}, {"id": 2, "name": "Tote"}, {"id": 2, "name": "Tote"}], None),
    ],
)
def test_categories_go_by_name_whatever_their_order_and_ids(tmp_path, categories, expected) -> None:
    content = {**document(), "categories": categories}
    split = CocoSplit.open(write(tmp_path, content))
    names = {entry["id"]: entry["name"] for entry in categories}
    assert [a.category for a in split.records[0].annotations] == [names[7], names[2]]
    assert split.categories == (expected or {name: number for number, name in names.items()})
    assert not split.skipped


@pytest.mark.parametrize(
    "entry", [{"id": 9}, {"name": "Hand"}, {"id": [1], "name": "Hand"}, {"id": 9, "name": 3}]
)
def test_incomplete_categories_are_counted(tmp_path, entry) -> None:
    content = document()
    content["categories"].append(entry)
    split = CocoSplit.open(write(tmp_path, content))
    assert split.categories == {"Object": 7, "Tote": 2}
    assert split.skipped == Counter({"category entry incomplete": 1})


def test_one_category_id_for_two_names_is_refused(tmp_path) -> None:
    content = document()
    content["categories"].append({"id": 7, "name": "Hand"})
    with pytest.raises(DatasetError, match="category id 7 to both 'Object' and 'Hand'"):
        CocoSplit.open(write(tmp_path, content))


def test_crowd_regions_are_kept_to_be_ignored(tmp_path) -> None:
    content = document()
    region = {"size": [HEIGHT, WIDTH], "counts": [0, 100, HEIGHT * WIDTH - 100]}
    content["annotations"] += [annotation(3, iscrowd=1, segmentation=region), annotation(4, iscrowd=1)]
    split = CocoSplit.open(write(tmp_path, content))
    assert [a.is_crowd for a in split.records[0].annotations] == [False, False, True, True]
    assert [entry["iscrowd"] for entry in split.to_coco()["annotations"]] == [0, 0, 1, 1]
    assert not split.skipped
    assert split.corrected == Counter({"crowd region, to be ignored": 2, "RLE mask": 1})


@pytest.mark.parametrize(
    "value", [None, True, -1, 1e308, 10**400, "x", [], [[]], {}, [[1, 2], [3, 4], [5, 6]]]
)
@pytest.mark.parametrize(
    ("part", "key"),
    [
        *(("images", key) for key in ("id", "file_name", "height", "width")),
        *(("annotations", key) for key in ("id", "image_id", "category_id", "segmentation", "iscrowd")),
        *(("annotations", key) for key in ("instance_id", "product_id", "bbox", "area")),
        *(("categories", key) for key in ("id", "name")),
    ],
)
def test_no_value_of_a_field_stops_the_reader(tmp_path, part, key, value) -> None:
    content = with_image()
    content["annotations"].append(annotation(3, image=2, segmentation=[[1, 1, 9, 1, 9, 9]]))
    content["categories"].append({"id": 9, "name": "Hand"})
    content[part][-1][key] = value
    assert CocoSplit.open(write(tmp_path, content)).records[0].image_id == 1


def test_polygon_over_the_border_is_clipped(tmp_path) -> None:
    content = document()
    content["annotations"] = [annotation(1, segmentation=[[-10, -10, 20, -10, 20, 20, -10, 20]])]
    split = CocoSplit.open(write(tmp_path, content))
    (clipped,) = split.records[0].annotations
    assert clipped.box == (0, 0, 20, 20)
    assert clipped.area == 400
    assert rasterise(clipped, HEIGHT, WIDTH)[:20, :20].all()
    assert split.corrected == Counter({"polygon clipped to the image": 1})


@pytest.mark.parametrize("compressed", [True, False])
def test_rle_is_read_and_drawn(tmp_path, compressed) -> None:
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[3:9, 40:60] = 1
    if compressed:
        rle = coco_mask.encode(np.asfortranarray(truth))
        rle = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    else:
        flat = truth.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        rle = {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges, flat.size]).tolist()}
    content = document()
    content["annotations"] = [annotation(1, segmentation=rle)]
    (found,) = CocoSplit.open(write(tmp_path, content)).records[0].annotations
    assert (found.box, found.area) == ((40, 3, 60, 9), 120)
    np.testing.assert_array_equal(rasterise(found, HEIGHT, WIDTH), truth.astype(bool))


def test_clean_document_is_what_pycocotools_reads(tmp_path) -> None:
    content = document()
    content["annotations"].append(annotation(3, segmentation=[[5, 5, 9, 9, 5, 5]]))
    write(tmp_path, content)
    split = CocoSplit.open(tmp_path)
    original = COCO(str(tmp_path / "mix-object-tote" / "test.json"))
    ours = COCO()
    ours.dataset = split.to_coco()
    ours.createIndex()
    assert sorted(ours.anns) == [1, 2]
    for number in ours.anns:
        np.testing.assert_array_equal(
            ours.annToMask(ours.anns[number]), original.annToMask(original.anns[number])
        )
        annotation_ = next(a for a in split.records[0].annotations if a.id == number)
        np.testing.assert_array_equal(
            rasterise(annotation_, HEIGHT, WIDTH), original.annToMask(original.anns[number]).astype(bool)
        )


def test_limit_counts_usable_images(tmp_path) -> None:
    content = with_image()
    content["images"].insert(0, {"id": 3, "file_name": "absent.jpg", "height": 1, "width": 1})
    assert [r.image_id for r in CocoSplit.open(write(tmp_path, content), limit=1).records] == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ("[" * 100_000, "not JSON"),
        ("{}", "no list of 'categories'"),
        ('{"categories": [], "images": [], "annotations": []}', "it is empty"),
        ('{"categories": [1], "images": [], "annotations": []}', "no list of 'categories'"),
    ],
)
def test_unusable_files_are_refused(tmp_path, text, message) -> None:
    write(tmp_path, document())
    (tmp_path / "mix-object-tote" / "test.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        CocoSplit.open(tmp_path)


def test_missing_split_is_refused(tmp_path) -> None:
    with pytest.raises(DatasetError, match=r"train\.json is missing"):
        CocoSplit.open(write(tmp_path, document()), split="train")


def test_rasterise_is_bounded() -> None:
    shape = Annotation(1, "Object", SQUARE, (0, 0, 1, 1), 1.0)
    with pytest.raises(DatasetError, match="exceeds"):
        rasterise(shape, 10_000, 10_000)
    wrong = Annotation(1, "Object", {"size": [1, 1], "counts": [1]}, (0, 0, 1, 1), 1.0)
    with pytest.raises(DatasetError, match="does not fit"):
        rasterise(wrong, 5, 5)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("shape", [(7, 13, 3), (300, 201, 3), (1, 1, 3)])
def test_size_comes_from_the_header(tmp_path, suffix, shape) -> None:
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), np.zeros(shape, np.uint8))
    assert image_size(path) == shape[:2]
    assert read_rgb(path).shape == shape


def test_channels_are_red_green_blue(tmp_path) -> None:
    cv2.imwrite(str(tmp_path / "red.png"), np.full((4, 4, 3), (0, 0, 255), np.uint8))
    np.testing.assert_array_equal(read_rgb(tmp_path / "red.png"), np.full((4, 4, 3), (255, 0, 0)))


def test_hundred_megapixels_are_refused_from_the_header(tmp_path) -> None:
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (10_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    path = tmp_path / "huge.png"
    path.write_bytes(header)
    assert image_size(path) == (10_000, 10_000)
    with pytest.raises(InvalidImageError, match="limit is 50,000,000"):
        read_rgb(path)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\xff\xd8", b"\xff\xd8\xff\xff\xff\xff\xc0\0\0\0\0\0\0\0\0"]
)
def test_damaged_images_are_refused(tmp_path, content) -> None:
    (tmp_path / "image.jpg").write_bytes(content)
    for read in (read_rgb, image_size):
        with pytest.raises(InvalidImageError, match="cannot be decoded"):
            read(tmp_path / "image.jpg")


def test_missing_image_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidImageError, match="cannot be read"):
        read_rgb(tmp_path / "absent.jpg")


def test_documents_are_not_changed(tmp_path) -> None:
    content = document()
    before = copy.deepcopy(content)
    CocoSplit.open(write(tmp_path, content))
    assert content == before


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ([9, 4, 22, 22], (9, 4, 31, 26)),
        ([9.5, 4.5, 40, 30], (9.5, 4.5, 49.5, 34.5)),
        ([12, 7, 16, 16], (12, 7, 28, 23)),
        ([13, 5, 17, 20], (10, 5, 30, 25)),
        ([10, 5, 70, 20], (10, 5, 30, 25)),
        ([-3, 5, 33, 20], (10, 5, 30, 25)),
        ([10, 5, 20], (10, 5, 30, 25)),
        ([10, 5, float("nan"), 20], (10, 5, 30, 25)),
        ("10 5", (10, 5, 30, 25)),
        (None, (10, 5, 30, 25)),
        ([10**400, 5, 20, 20], (10, 5, 30, 25)),
    ],
)
def test_stated_box_counts_where_it_fits_the_outline(tmp_path, stated, expected) -> None:
    content = {**document(), "annotations": [annotation(1, bbox=stated)]}
    (record,) = CocoSplit.open(write(tmp_path, content)).records
    assert record.annotations[0].box == expected


@pytest.mark.parametrize(
    ("stated", "expected"), [(0.4, 0.4), (1, 1.0), (1.5, None), ("half", None), (True, None)]
)
def test_visible_fraction_is_read_where_it_is_one(tmp_path, stated, expected) -> None:
    content = {**document(), "annotations": [annotation(1, visible_fraction=stated)]}
    (record,) = CocoSplit.open(write(tmp_path, content)).records
    assert record.annotations[0].visible_fraction == expected
