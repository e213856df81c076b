"""Annotation files as they are found in the wild; the numbers are those of the table of cases."""

import json
import re
from pathlib import Path

import pytest
from trainyard_trainer.errors import BadData
from trainyard_trainer.records import Kind

from tests.trainer.vocfiles import HEIGHT, WIDTH, found, good, load, obj, picture, record, xml

A = "Annotations/img_00.xml"
ROOT = Path(__file__).parents[2]


def with_first(annotation: bytes, images: int = 40) -> dict[str, bytes]:
    """A good dataset whose first annotation is another one; large enough that one repair is under 5 percent."""
    return {**good(images), A: annotation}


def test_01_a_wrong_filename_or_path_is_ignored_and_counted(tmp_path: Path):
    dataset = load(with_first(xml(obj(), name="C:\\Users\\me\\other.jpg")), tmp_path)
    assert record(dataset).image == "JPEGImages/img_00.jpg"
    assert [str(f) for f in found(dataset, "FilenameWrong")] == [
        f"{A}: <filename> is 'other.jpg'; the image of the same stem is taken"
    ]


def test_03_an_inverted_box_is_swapped_and_named_by_line(tmp_path: Path):
    dataset = load(with_first(xml(obj(box=(40, 8, 10, 28)))), tmp_path)
    assert record(dataset).objects[0].box == (10, 8, 40, 28)
    (finding,) = found(dataset, "BoxInverted")
    assert (finding.kind, str(finding)) == (Kind.LOSSY, f"{A}:7: xmax 10 < xmin 40; swapped")


def test_03_more_lossy_repairs_than_allowed_are_an_error_that_names_the_first(tmp_path: Path):
    with pytest.raises(BadData, match=r"Annotations/img_00.xml:7: xmax 10 < xmin 40") as caught:
        load(with_first(xml(obj(box=(40, 8, 10, 28))), images=12), tmp_path, limits={"maxRepairPercent": 0})
    assert "maxRepairPercent" in str(caught.value)


def test_04_a_box_without_area_is_dropped(tmp_path: Path):
    dataset = load(with_first(xml(obj(box=(10, 8, 10, 28)), obj("dot"))), tmp_path)
    assert [o.label for o in record(dataset).objects] == ["dot"]
    assert found(dataset, "BoxEmpty")[0].kind is Kind.LOSSY


def test_05_a_box_that_leaves_the_image_is_clipped(tmp_path: Path):
    dataset = load(with_first(xml(obj(box=(50, 40, 70, 60)))), tmp_path)
    assert record(dataset).objects[0].box == (50, 40, WIDTH, HEIGHT)
    assert found(dataset, "BoxClipped")[0].kind is Kind.LOSSY


def test_05_a_box_out_by_rounding_is_clipped_without_counting_as_lossy(tmp_path: Path):
    dataset = load(with_first(xml(obj(box=(50, 40, 65, 48)))), tmp_path)
    assert found(dataset, "BoxClipped")[0].kind is Kind.REPAIRED


def test_05_a_box_with_less_than_a_fifth_inside_is_dropped(tmp_path: Path):
    dataset = load(with_first(xml(obj(box=(60, 10, 100, 30)), obj("dot"))), tmp_path)
    assert [o.label for o in record(dataset).objects] == ["dot"]
    assert found(dataset, "BoxOutside")


@pytest.mark.parametrize(
    ("box", "origin", "expected"),
    [
        ((0, 0, 20, 20), "Auto", (0, 0, 20, 20)),
        ((1, 1, 20, 20), "Auto", (0, 0, 20, 20)),
        ((2, 2, 20, 20), "Auto", (2, 2, 20, 20)),
        ((1, 1, 20, 20), "0", (1, 1, 20, 20)),
        ((2, 2, 20, 20), "1", (1, 1, 20, 20)),
    ],
)
def test_06_the_first_pixel_is_0_or_1_for_the_whole_dataset(tmp_path: Path, box, origin, expected):
    files = good()
    for name in files:
        if name.endswith(".xml"):
            files[name] = xml(obj(box=box))
    dataset = load(files, tmp_path, limits={"boxOrigin": origin})
    assert record(dataset).objects[0].box == expected
    assert bool(found(dataset, "BoxOriginOne")) == (origin == "Auto" and box[0] == 1)


def test_07_floats_blanks_and_decimal_commas_are_numbers(tmp_path: Path):
    dataset = load(with_first(xml(obj(box=(" 10.5 ", "8,25", "3e1", "28.0")))), tmp_path)
    assert record(dataset).objects[0].box == (10.5, 8.25, 30, 28)


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "ten", ""])
def test_07_what_is_no_finite_number_is_an_error_with_its_line(tmp_path: Path, value: str):
    with pytest.raises(BadData, match=r"^Annotations/img_00.xml:8: xmin is .*number"):
        load(with_first(xml(obj(box=(value, 8, 30, 28)))), tmp_path)


def test_08_normalised_boxes_are_an_error_with_a_hint(tmp_path: Path):
    with pytest.raises(BadData, match=r"img_00.xml:7: the box .* shares of the image .* multiply by width and height"):
        load(with_first(xml(obj(box=(0.1, 0.2, 0.5, 0.6)))), tmp_path)


@pytest.mark.parametrize(
    ("size", "reason"), [(None, "SizeMissing"), ((0, 0), "SizeMissing"), ((640, 480), "SizeWrong")]
)
def test_09_the_image_is_trusted_rather_than_size(tmp_path: Path, size, reason: str):
    dataset = load(with_first(xml(obj(), size=size)), tmp_path)
    assert (record(dataset).width, record(dataset).height) == (WIDTH, HEIGHT)
    assert found(dataset, reason)[0].kind is Kind.WARNING


def test_16_images_without_objects_are_background_or_skipped(tmp_path: Path):
    files = with_first(xml())
    assert record(load(files, tmp_path)).objects == ()
    dataset = load(files, tmp_path, withoutObjects="Skip")
    assert "img_00" not in {r.name for r in dataset.records}
    assert found(dataset, "WithoutObjects")


def test_19_difficult_truncated_and_occluded_are_kept(tmp_path: Path):
    flags = "<difficult>1</difficult><truncated>1</truncated><occluded>1</occluded>"
    first = record(load(with_first(xml(obj(extra=flags))), tmp_path)).objects[0]
    assert (first.difficult, first.truncated, first.occluded) == (True, True, True)


def test_20_boxes_of_parts_are_not_objects(tmp_path: Path):
    part = "<part><name>hand</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    dataset = load(with_first(xml(obj(extra=part))), tmp_path)
    assert [(o.label, o.box) for o in record(dataset).objects] == [("cell", (10, 8, 30, 28))]


@pytest.mark.parametrize(
    "points",
    [
        "<pt><x>10</x><y>8</y></pt><pt><x>30</x><y>8</y></pt><pt><x>20</x><y>28</y></pt>",
        "<x1>10</x1><y1>8</y1><x2>30</x2><y2>8</y2><x3>20</x3><y3>28</y3>",
    ],
)
def test_21_a_polygon_without_a_box_gives_its_outline(tmp_path: Path, points: str):
    polygon = f"<object><name>cell</name><polygon>{points}</polygon></object>"
    dataset = load(with_first(xml(polygon)), tmp_path)
    assert record(dataset).objects[0].box == (10, 8, 30, 28)
    assert found(dataset, "PolygonWithoutBox")[0].kind is Kind.LOSSY


def test_21_an_object_with_neither_is_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"img_00.xml:4: an object without <bndbox>"):
        load(with_first(xml("<object><name>cell</name></object>")), tmp_path)


def test_22_labels_are_stripped_and_composed(tmp_path: Path):
    dataset = load(with_first(xml(obj("  cafe\u0301\n"), obj("caf\u00e9"))), tmp_path)
    assert {o.label for o in record(dataset).objects} == {"caf\u00e9"}


def test_22_control_characters_in_a_label_are_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"img_00.xml:4: the label 'ce\\x85ll' has control characters"):
        load(with_first(xml(obj("ce\u0085ll"))), tmp_path)


def test_22_labels_that_differ_in_case_are_a_warning(tmp_path: Path):
    dataset = load(with_first(xml(obj("Cell"))), tmp_path)
    assert (
        found(dataset, "LabelsDifferInCase")[0].message == "'Cell' and 'cell' differ only in case and are learnt apart"
    )
    assert dataset.labels == ("Cell", "cell", "dot")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1251", "gb18030"])
def test_23_a_byte_order_mark_and_declared_encodings_are_understood(tmp_path: Path, encoding: str):
    label = "клетка" if encoding == "cp1251" else "细胞" if encoding == "gb18030" else "Zelle-ü-细胞"
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\n'
    data = xml(obj(label), head=head).decode().encode(encoding)
    assert record(load(with_first(data), tmp_path)).objects[0].label == label


def test_27_annotations_in_json_of_the_same_shape_are_read(tmp_path: Path):
    files = good()
    del files[A]
    box = {"xmin": 10, "ymin": "8", "xmax": 30.0, "ymax": 28}
    tree = {"filename": "img_00.jpg", "size": {"width": WIDTH, "height": HEIGHT}}
    tree["object"] = [{"name": "cell", "difficult": 1, "bndbox": box}]
    files["Annotations/img_00.json"] = json.dumps({"annotation": tree}).encode()
    first = record(load(files, tmp_path)).objects[0]
    assert (first.label, first.box, first.difficult) == ("cell", (10, 8, 30, 28), True)


def test_27_the_annotation_that_the_documentation_shows_is_read(tmp_path: Path):
    (shown,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "datasets.md").read_text(), re.DOTALL)
    files = good()
    del files[A]
    files["Annotations/img_00.json"] = shown.encode()
    files["JPEGImages/img_00.jpg"] = picture(0, (640, 480))
    dataset = load(files, tmp_path)
    assert [(item.label, item.box, item.difficult) for item in record(dataset).objects] == [
        ("cell", (48, 240, 195, 371), False),
        ("dot", (8, 12, 20, 30), True),
    ]
    bare = json.dumps(json.loads(shown)["annotation"]).encode()
    assert record(load({**files, "Annotations/img_00.json": bare}, tmp_path)).objects == record(dataset).objects


BOX = {"xmin": 1, "ymin": 1, "xmax": 9, "ymax": 9}
POINTS = [[1, 1], [9, 1], [9, 9]]


@pytest.mark.parametrize(
    ("item", "reason", "said"),
    [
        ({"bndbox": BOX}, "LabelMissing", "object 1: an object without a <name>"),
        ({"name": "a\u0085b", "bndbox": BOX}, "LabelUnreadable", "object 1: the label"),
        ({"name": "cell"}, "BoxMissing", "object 1: has no bndbox"),
        ("cell", "JSONInvalid", "object 1: is no JSON object"),
        ({"name": "cell", "bndbox": BOX | {"xmin": "x"}}, "CoordinateUnreadable", "object 1: xmin is 'x', not a number"),
        ({"name": "cell", "bndbox": dict.fromkeys(BOX, 0.5)}, "BoxNormalised", "object 1: the box (0.5, "),
        ({"name": "cell", "polygon": POINTS}, "PolygonWithoutBox", "object 1: has a polygon"),
        ({"name": "cell", "bndbox": BOX | {"xmin": 20}}, "BoxInverted", "object 1: xmax 9 < xmin 20"),
        ({"name": "cell", "bndbox": BOX | {"xmin": 9}}, "BoxEmpty", "object 1: the box of 'cell' has no area"),
        ({"name": "cell", "bndbox": BOX | {"xmax": WIDTH + 9}}, "BoxClipped", "object 1: the box of 'cell' leaves"),
        ({"name": "cell", "bndbox": dict.fromkeys(BOX, 900) | {"xmin": 800, "ymin": 800}}, "BoxOutside", "object 1: "),
    ],
)  # fmt: skip
def test_27_what_is_found_in_json_names_the_object(tmp_path: Path, item: object, reason: str, said: str):
    files = good()
    del files[A]
    tree = {"object": [{"name": "cell", "bndbox": BOX}, item], "size": {"width": WIDTH, "height": HEIGHT}}
    files["Annotations/img_00.json"] = json.dumps(tree).encode()
    (finding,) = found(load(files, tmp_path, strict=False), reason)
    assert str(finding).startswith(f"Annotations/img_00.json: {said}")


def test_27_json_that_is_broken_is_an_error_with_its_line(tmp_path: Path):
    files = good()
    del files[A]
    files["Annotations/img_00.json"] = b'{"annotation": {\n"object": [}\n'
    with pytest.raises(BadData, match=r"img_00.json:2: is no valid JSON"):
        load(files, tmp_path)


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE annotation SYSTEM "http://example.com/voc.dtd">',
        '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    ],
)
def test_29_a_doctype_is_an_error_and_nothing_is_resolved(tmp_path: Path, doctype: str):
    with pytest.raises(BadData, match=r"img_00.xml:2: has a DOCTYPE"):
        load(
            with_first(xml(obj("&x;" if "&" not in doctype else "cell"), head=f'<?xml version="1.0"?>\n{doctype}\n')),
            tmp_path,
        )


def test_29_an_undeclared_entity_is_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"img_00.xml:\d+: is no valid XML: Entity 'x' not defined"):
        load(with_first(xml(obj("&x;"))), tmp_path)


def test_29_an_annotation_over_4_mb_is_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"img_00.xml: 4,.* bytes; an annotation has at most 4,194,304"):
        load(with_first(xml(extra="<!--" + "x" * (4 << 20) + "-->")), tmp_path)


def test_xml_of_something_else_and_broken_xml_say_what_they_are(tmp_path: Path):
    files = {
        **good(),
        A: b"<annotations version='1.1'/>",
        "Annotations/img_01.xml": b"<annotation>\n<object>\n</annotation>",
    }
    with pytest.raises(BadData) as caught:
        load(files, tmp_path)
    assert "img_00.xml:1: begins with <annotations>" in str(caught.value)
    assert "img_01.xml:3: is no valid XML" in str(caught.value)


def test_all_errors_are_collected_and_the_first_ones_said(tmp_path: Path):
    files = good(20)
    for index in range(8):
        files[f"Annotations/img_{index:02d}.xml"] = xml(obj(box=("x", 1, 2, 3)))
    with pytest.raises(BadData, match=r"img_00.xml:8.*img_04.xml:8.*; and 3 more"):
        load(files, tmp_path)


def test_boxes_are_those_of_the_picture_as_it_is(tmp_path: Path):
    """The picture of another size than all others is measured, not assumed."""
    files = with_first(xml(obj(box=(10, 8, 100, 90)), size=(128, 96)))
    files["JPEGImages/img_00.jpg"] = picture(1000, (128, 96))
    assert record(load(files, tmp_path)).objects[0].box == (10, 8, 100, 90)
