"""The typed and the tolerant reader of a json agree, on valid and on malformed files."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anydepth.data.coco.packing import read_tables
from anydepth.data.coco.tables import CocoTables
from anydepth.data.coco.tolerant import tolerant_tables
from anydepth.data.coco.typed import UnusualJsonError, typed_tables
from anydepth.data.errors import DataError

ids = st.integers(-(2**63), 2**63 - 1)
numbers = st.one_of(st.integers(-1000, 1000), st.floats(allow_nan=False, allow_infinity=False))
coordinates = st.one_of(st.integers(-9, 999), st.floats(-9, 999))
rings = st.lists(coordinates, min_size=3, max_size=9).map(lambda values: values * 2)
run_lengths = st.fixed_dictionaries({"counts": st.lists(st.integers(0, 9)), "size": st.just([4, 4])})
malformed = st.sampled_from([5, "x", True, [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, "5", 6]], [1, 2]])
segmentations = st.one_of(
    st.none(), st.just([]), st.just([[]]), st.lists(rings, max_size=3), run_lengths, malformed
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="/\\:\0."), min_size=1, max_size=8)


@st.composite
def usual_documents(draw: st.DrawFn) -> dict[str, Any]:
    """Documents as programs write them, with additional keys and without optional ones."""
    image_ids = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    category_ids = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    side = st.integers(1, 2**31 - 1)
    image = {"height": side, "width": side, "file_name": texts, "license": st.integers()}
    annotation = {
        "image_id": st.sampled_from(image_ids),
        "category_id": st.sampled_from(category_ids),
        "bbox": st.lists(numbers, min_size=4, max_size=4),
    }
    optional = {
        "area": st.one_of(st.none(), numbers),
        "iscrowd": st.sampled_from([0, 1]),
        "segmentation": segmentations,
        "score": numbers,
    }
    annotations = st.fixed_dictionaries(annotation, optional=optional)
    annotation_ids = draw(st.lists(ids, max_size=5, unique=True))
    return {
        "info": draw(st.one_of(st.none(), st.just({"images": [1]}))),
        "images": [{"id": i} | draw(st.fixed_dictionaries(image)) for i in image_ids],
        "annotations": [{"id": i} | draw(annotations) for i in annotation_ids],
        "categories": [{"id": i, "name": draw(texts)} for i in category_ids],
    }


def comparable(tables: CocoTables) -> list[Any]:
    """Return the content of tables in a form that compares; NaN equals NaN here."""
    outlines = None
    if tables.rings is not None:
        found = [tables.rings(position) for position in range(len(tables.rows))]
        outlines = [None if rings is None else [ring.tolist() for ring in rings] for rings in found]
    arrays = [tables.image_ids, tables.sizes, tables.rows, *vars(tables.annotations).values()]
    columns = [(array.dtype.str, array.shape, array.tobytes()) for array in arrays]
    return [tables.categories, tables.names, columns, outlines]


def outcome(read: Any, path: Path, outlines: bool) -> object:
    """Return what a reader reads, or its error."""
    try:
        return comparable(read(path, None, outlines=outlines))
    except DataError as error:
        return str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


ROUNDS = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@ROUNDS
@given(document=usual_documents(), outlines=st.booleans(), indent=st.sampled_from([None, 1]))
def test_the_typed_reader_accepts_usual_files_and_reads_the_same(
    folder: Path, document: dict[str, Any], outlines: bool, indent: int | None
) -> None:
    path = folder / "usual.json"
    path.write_text(json.dumps(document, indent=indent), encoding="utf-8")
    fast = typed_tables(path, None, outlines=outlines)
    assert comparable(fast) == comparable(tolerant_tables(path, None, outlines=outlines))


DOCUMENT: dict[str, Any] = {
    "images": [{"id": i, "height": 40, "width": 50, "file_name": f"{i}.jpg"} for i in (1, 2)],
    "annotations": [
        {
            "id": i,
            "image_id": 1,
            "category_id": 3,
            "bbox": [1, 2, 3.5, 4],
            "area": 9.5,
            "iscrowd": 0,
            "segmentation": [[1, 2, 3, 4, 5, 6]],
        }
        for i in (1, 2)
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
}
# Values that a program may write: other types, other spellings of a number, values beyond the arrays' range.
STRANGE = [
    None,
    True,
    False,
    0,
    1,
    2,
    -1,
    5,
    0.0,
    1.0,
    3.0,
    -0.0,
    0.5,
    1e-320,
    2**31 - 1,
    2**31,
    2**63,
    -(2**63),
]
STRANGE += [
    -(2**63) - 1,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "1",
    "../a",
    "a/../b",
    "/a",
    "C:a",
    "\\a",
    "a..b",
]
STRANGE += [
    "a\0b",
    [],
    {},
    [[]],
    [1, 2, 3],
    [1, 2, 3, 4],
    [1, 2, 3, None],
    [1, 2, 3, True],
    [0, 1, 2, 10**30],
]
STRANGE += [[1, 2, 3, 4, 5], [[1, 2, 3, 4, 5, "6"]], [[1, 2, 3, 4, 5, 1e300]], [[1, 2, 3, 4, 5, 10**400]]]
STRANGE += [
    [[1, 2, 3, 4, 5, float("nan")]],
    [[1, 2, 3, 4, 5, 6], []],
    {"counts": [1], "size": [1, 1]},
    "missing",
]


@pytest.mark.parametrize(
    ("table", "key"), [(table, key) for table, entries in DOCUMENT.items() for key in entries[0]]
)
def test_a_file_with_one_strange_value_is_read_or_refused_alike(tmp_path: Path, table: str, key: str) -> None:
    path = tmp_path / "strange.json"
    for value in STRANGE:
        document = copy.deepcopy(DOCUMENT)
        if value == "missing":
            del document[table][1][key]
        else:
            document[table][1][key] = value
        path.write_text(json.dumps(document), encoding="utf-8")
        found, expected = (outcome(read, path, True) for read in (read_tables, tolerant_tables))
        assert found == expected, value


@pytest.mark.parametrize("table", list(DOCUMENT))
def test_a_file_with_a_strange_table_is_read_or_refused_alike(tmp_path: Path, table: str) -> None:
    path = tmp_path / "strange.json"
    for value in (None, 5, "", [], {}, [5], [None], [{}], [DOCUMENT[table][0]] * 2):
        path.write_text(json.dumps(DOCUMENT | {table: value}), encoding="utf-8")
        found, expected = (outcome(read, path, False) for read in (read_tables, tolerant_tables))
        assert found == expected, value


@ROUNDS
@given(document=usual_documents(), data=st.data())
def test_a_damaged_file_is_read_or_refused_alike(
    folder: Path, document: dict[str, Any], data: st.DataObject
) -> None:
    content = bytearray(json.dumps(document, ensure_ascii=False).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path = folder / "damaged.json"
    path.write_bytes(content)
    expected = outcome(tolerant_tables, path, False)
    found = outcome(read_tables, path, False)
    # The typed reader does not notice bytes that are not UTF-8 in values that it skips.
    assert found == expected or "cannot be read" in str(expected)


def test_a_byte_order_mark_does_not_make_a_file_unusual(tmp_path: Path) -> None:
    document = {
        "images": [{"id": 1, "height": 4, "width": 5, "file_name": "ä.jpg"}],
        "annotations": [],
        "categories": [{"id": 3, "name": "Bäume"}],
    }
    path = tmp_path / "marked.json"
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8-sig")
    fast = typed_tables(path, None, outlines=False)
    assert fast.names == ["ä.jpg"]
    assert fast.categories.names == ("Bäume",)


def test_what_the_types_do_not_cover_is_still_read(tmp_path: Path) -> None:
    document = {
        "images": [{"id": 1.0, "height": 4, "width": 5, "file_name": "a.jpg"}],
        "annotations": [
            {"id": 2, "image_id": 1, "category_id": 3, "iscrowd": True, "bbox": [0, 0, float("nan"), 1]}
        ],
        "categories": [{"id": 3, "name": "tree"}],
    }
    path = tmp_path / "unusual.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UnusualJsonError):
        typed_tables(path, None, outlines=False)
    tables = read_tables(path, None, outlines=False)
    assert tables.image_ids.tolist() == [1]
    assert tables.annotations.crowd.tolist() == [True]
    assert np.isnan(tables.annotations.boxes_xywh[0, 2])
