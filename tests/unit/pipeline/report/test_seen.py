"""Images on the page: the hardest of the test split, contact sheets, what was left out; from real shards."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import GlyphsSource
from pipeline.data.exclusions import write_exclusions
from pipeline.data.manifest import load_manifest
from pipeline.data.write import prepare
from pipeline.report.build import build
from pipeline.report.contact import Prepared, contact_sheets, left_out_pictures
from pipeline.report.hardest import hardest, rank_images
from pipeline.report.parts import Tile
from pipeline.report.thumbnails import address
from pipeline.rundir import RunDir, write_json
from pipeline.transfer.cells import Cell
from tests.helpers.cells import make_cell
from tests.helpers.synthetic_run import synthetic_config, write_synthetic_run

DATA = "d" * 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that holds 4 × 3 test drawings."""
    run = RunDir(tmp_path_factory.mktemp("run"))
    prepare(
        GlyphsSource(source="glyphs", classes=4, train_per_class=10, test_per_class=3), run.job(DATA).path
    )
    return run


def scored(
    run: RunDir, digest: str, predictions: list[int], losses: list[float] | None, **changes: object
) -> Cell:
    """A cell of the 12 drawings, whose classes are 0 0 0 1 1 1 … here, with its files in shuffled order."""
    labels = np.repeat(np.arange(4), 3)
    said = np.array(predictions)
    ids = np.random.default_rng(1).permutation(12)
    columns = {"id": ids} if losses is None else {"id": ids, "nll": np.array(losses, np.float32)[ids]}
    run.job(digest).path.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), run.job(digest).predictions)
    write_json(run.job(digest).job, {"inputs": {"data": DATA}})
    cell = make_cell(labels == said, digest=digest, classes=("ant", "bee", "cat", "dog"))
    print_ = load_manifest(run.job(DATA).path).splits["test"].fingerprint
    given = {
        "labels": labels.astype(np.int32),
        "predictions": said.astype(np.int32),
        "test_fingerprint": print_,
    }
    return replace(cell, **(given | changes))  # type: ignore[arg-type]


#         0  0  0  1  1  1  2  2  2  3  3  3
FIRST = [0, 0, 3, 1, 0, 1, 2, 2, 1, 3, 3, 3]
SECOND = [0, 2, 3, 1, 0, 1, 2, 2, 2, 3, 3, 3]
LOSSES = [0.0, 0.5, 1.0, 0, 4.0, 0, 0, 0, 9.0, 0, 0, 0]


def test_most_often_wrong_comes_first_then_the_larger_loss(run: RunDir) -> None:
    cells = [scored(run, "a" * 16, FIRST, LOSSES), scored(run, "b" * 16, SECOND, LOSSES, seed=1)]
    found, missed = rank_images(run, cells, 12)
    assert [(hard.id, hard.wrong, hard.label, hard.taken_for) for hard in found] == [
        (4, 2, "bee", "ant"),
        (2, 2, "ant", "dog"),
        (8, 1, "cat", "bee"),
        (1, 1, "ant", "cat"),
    ]
    assert [hard.loss for hard in found] == [4.0, 1.0, 9.0, 0.5]
    assert missed == 2
    assert len(rank_images(run, cells, 1)[0]) == 1


def test_the_pictures_are_those_of_the_ids(run: RunDir) -> None:
    (gallery,) = hardest(run, [scored(run, "a" * 16, FIRST, LOSSES)])
    assert gallery.note == "3 of 12 images (25.0 %) were wrong in the one model."
    assert [tile.lines[0] for tile in gallery.tiles] == ["cat", "bee", "ant"]
    assert gallery.tiles[0].lines[2] == "1 of 1 wrong, loss 9"
    # Another order of ids would show other drawings.
    (again,) = hardest(run, [scored(run, "a" * 16, [1, *FIRST[1:]], [99.0, *LOSSES[1:]])])
    assert again.tiles[0].source not in {tile.source for tile in gallery.tiles}
    assert [tile.source for tile in again.tiles[1:]] == [tile.source for tile in gallery.tiles]


def test_few_shot_has_no_loss_and_still_its_hardest(run: RunDir) -> None:
    (gallery,) = hardest(run, [scored(run, "c" * 16, FIRST, None)])
    assert [tile.lines[2] for tile in gallery.tiles] == ["1 of 1 wrong"] * 3


def test_other_images_than_were_scored_are_not_shown(run: RunDir) -> None:
    (gallery,) = hardest(run, [scored(run, "a" * 16, FIRST, LOSSES, test_fingerprint="e" * 64)])
    assert gallery.tiles == ()
    assert "is not the one that was scored" in gallery.note
    cell = scored(run, "a" * 16, FIRST, LOSSES)
    write_json(run.job("a" * 16).job, {"inputs": {"data": "f" * 16}})
    (gallery,) = hardest(run, [cell])
    assert "No pictures: no manifest.json in" in gallery.note


def picture(tile: Tile) -> Image.Image:
    head, _, data = tile.source.partition(";base64,")
    assert head in ("data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_contact_sheets_are_of_train_and_the_same_each_time(run: RunDir) -> None:
    (sheet,) = contact_sheets(run, [Prepared("glyphs", DATA)])
    assert sheet.note == "24 of 40, drawn at random."
    assert len({tile.source for tile in sheet.tiles}) == 24
    assert all(tile.lines[0].startswith("glyph") for tile in sheet.tiles)
    assert contact_sheets(run, [Prepared("glyphs", DATA)]) == [sheet]
    assert picture(sheet.tiles[0]).size == (32, 32), "a small drawing keeps its pixels"
    (gone,) = contact_sheets(run, [Prepared("gone", "0" * 16)])
    assert gone.tiles == ()
    assert "no manifest.json" in gone.note


def test_many_datasets_have_fewer_images_each(run: RunDir) -> None:
    sheets = contact_sheets(run, [Prepared(str(k), DATA) for k in range(19)])
    assert {len(sheet.tiles) for sheet in sheets} == {8}


def test_what_was_left_out_is_shown(run: RunDir) -> None:
    split = load_manifest(run.job(DATA).path).splits["train"]
    path = run.job("p" * 16).path / "exclude-glyphs.json"
    write_exclusions(path, split.fingerprint, np.array([3, 7]), "why")
    (gallery,) = left_out_pictures(run, [Prepared("glyphs", DATA)], "p" * 16)
    assert (gallery.title, len(gallery.tiles)) == ("glyphs, left out", 2)
    write_exclusions(path, split.fingerprint, np.array([], np.int64), "why")
    assert left_out_pictures(run, [Prepared("glyphs", DATA)], "p" * 16) == []
    write_exclusions(path, "0" * 64, np.array([3]), "why")
    (gallery,) = left_out_pictures(run, [Prepared("glyphs", DATA)], "p" * 16)
    assert gallery.tiles == ()


def test_photos_are_brought_down_and_keep_their_shape() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (300, 600, 3), dtype=np.uint8)
    assert picture(Tile(address(photo), "")).size == (96, 48)
    assert len(address(photo)) < 8_000
    flat = np.full((64, 64, 3), 200, np.uint8)
    assert address(flat).startswith("data:image/png"), "what has few colours stays lossless"


def test_the_page_shows_no_image_where_they_must_stay(tmp_path: Path) -> None:
    made = write_synthetic_run(synthetic_config(tmp_path, report={"images": False}))
    source = GlyphsSource(source="glyphs", classes=4, train_per_class=4, test_per_class=2)
    prepare(source, made.run.job(made.digests["prepare/glyphs"]).path)
    page = build(made.run, made.config.model_dump(mode="json"), made.digests).html.read_text()
    assert "<img" not in page
    assert 'id="hardest"' not in page
    assert 'id="data"' in page
