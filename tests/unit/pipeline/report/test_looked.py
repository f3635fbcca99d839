"""A run's pre-trained weights, looked into: which images, and the section of the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from model.weights.files import save_weights
from model.zoo import create_model, model_config
from pipeline.config import FolderSource, GlyphsSource
from pipeline.data.write import prepare
from pipeline.report.build import ReportPaths, build
from pipeline.report.looked import Looked, affordable, look
from tests.helpers.synthetic_run import SyntheticRun, synthetic_config, write_synthetic_run

PHOTOS = Path(__file__).resolve().parents[3] / "data" / "photos"
SMALL = {"width": 48, "depth": 2, "heads": 3, "mlp": 96}


def write_weights(made: SyntheticRun, name: str = "vit_ti8", **options: object) -> None:
    options = {"num_classes": 8, "image_size": 32, **(options or SMALL)}
    model = create_model(name, generator=torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]
    seen = {"image_size": 32, "evaluate": "resize", "larger": 1.2, "scale": ""}
    path = made.run.job(made.digests["pretrain"]).weights
    save_weights(path, model.state_dict(), model.config.to_dict(), {"preprocessing": json.dumps(seen)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    """A run whose pre-training left weights and whose 8 × 20 test drawings are there."""
    made = write_synthetic_run(synthetic_config(tmp_path_factory.mktemp("runs")))
    source = GlyphsSource(source="glyphs", classes=8, train_per_class=4, test_per_class=20)
    prepare(source, made.run.job(made.digests["prepare/glyphs"]).path)
    write_weights(made)
    return made


@pytest.fixture(scope="module")
def looked(made: SyntheticRun) -> Looked:
    found = look(made.run, made.digests["pretrain"])
    assert found is not None
    return found


def copy_of(made: SyntheticRun, to: Path) -> SyntheticRun:
    shutil.copytree(made.run.path, to / made.run.path.name)
    return SyntheticRun(type(made.run)(to / made.run.path.name), made.config, made.planned)


def test_images_are_of_the_test_split_and_all_classes(made: SyntheticRun, looked: Looked) -> None:
    assert (looked.images, looked.split, looked.missing) == (128, "test", "")
    assert list(looked.insight.drawings) == ["rollout", "filters", "positions", "distance"]
    names = [row["image"] for row in looked.insight.numbers["rollout"]["images"]]
    assert len(set(names)) == 6
    again = look(made.run, made.digests["pretrain"])
    assert again == looked


def test_a_mixture_is_looked_at_by_its_shares(made: SyntheticRun, tmp_path: Path) -> None:
    copy = copy_of(made, tmp_path)
    job = json.loads(copy.run.job(copy.digests["pretrain"]).job.read_text())
    view = job["work"]["validate_on"]
    job["work"]["validate_on"] = {"parts": [view, view], "weights": [3, 1]}
    copy.run.job(copy.digests["pretrain"]).job.write_text(json.dumps(job))
    found = look(copy.run, copy.digests["pretrain"])
    assert found is not None
    assert (found.images, found.split, found.missing) == (96 + 32, "test", "")


def test_looking_is_no_opening_of_a_test_split(made: SyntheticRun, looked: Looked, tmp_path: Path) -> None:
    copy = copy_of(made, tmp_path)
    before = copy.run.openings.read_bytes()
    look(copy.run, copy.digests["pretrain"])
    assert copy.run.openings.read_bytes() == before


def test_costly_models_see_fewer_images() -> None:
    found = [affordable(model_config(name, num_classes=1)) for name in ("vit_s16", "vit_l16", "vit_G14")]
    assert found == [128, 32, 8]


def test_what_is_not_there_is_no_error(made: SyntheticRun, tmp_path: Path) -> None:
    copy = copy_of(made, tmp_path)
    pretrain, glyphs = (copy.run.job(copy.digests[name]) for name in ("pretrain", "prepare/glyphs"))
    (glyphs.path / "manifest.json").unlink()
    found = look(copy.run, copy.digests["pretrain"])
    assert found is not None
    assert "manifest" in found.missing
    assert found.insight.drawings == {}
    job = json.loads(pretrain.job.read_text())
    job["work"]["validate_on"]["new"] = 1
    pretrain.job.write_text(json.dumps(job))
    found = look(copy.run, copy.digests["pretrain"])
    assert found is not None
    assert "of another version" in found.missing
    pretrain.weights.write_bytes(b"cut")
    found = look(copy.run, copy.digests["pretrain"])
    assert found is not None
    assert "not a whole safetensors file" in found.missing
    pretrain.weights.unlink()
    assert look(copy.run, copy.digests["pretrain"]) is None


# ---------------------------------------------------------------- the page


def build_report(made: SyntheticRun) -> ReportPaths:
    return build(made.run, made.config.model_dump(mode="json"), made.digests)


def section_of(report: ReportPaths) -> str:
    found = re.search(r'<section id="insight">.*?</section>', report.html.read_text(), re.DOTALL)
    return found[0] if found else ""


def test_the_page_shows_four_pictures_with_their_numbers(made: SyntheticRun) -> None:
    report = build_report(made)
    first = {path.name: path.read_bytes() for path in report.html.parent.iterdir()}
    build_report(made)
    assert {path.name: path.read_bytes() for path in report.html.parent.iterdir()} == first
    # 24 drawings of the pre-training's train split.
    assert report.html.read_text().count('<li><img src="data:image/') == 24
    section = section_of(report)
    assert re.findall(r'<figure id="fig-(\w+)"', section) == ["rollout", "distance", "positions", "filters"]
    assert section.count("Numbers behind this plot") == 4
    assert "128 images of glyphs, test split" in section
    assert "Left out" not in section
    assert len(section) < 400_000
    assert {path.stem for path in report.pictures} >= {"rollout", "distance", "positions", "filters"}
    for reference in re.findall(r'href="([^"]{0,24})', section):
        assert reference.startswith(("#", "data:image/png;", "data:image/jpeg;"))


def test_the_page_says_what_it_cannot_show(made: SyntheticRun, tmp_path: Path) -> None:
    copy = copy_of(made, tmp_path)
    write_weights(copy, "bit_r26x1", blocks=(1,))
    section = section_of(build_report(copy))
    assert "Left out: bit_r26x1 is a ResNet: no attention, patches or positions." in section
    assert "<figure" not in section
    (copy.run.job(copy.digests["prepare/glyphs"]).path / "manifest.json").unlink()
    section = section_of(build_report(copy))
    assert "Nothing was looked at:" in section


def test_photos_keep_the_section_small(made: SyntheticRun, tmp_path: Path) -> None:
    copy = copy_of(made, tmp_path)
    photos = FolderSource(source="folder", path=str(PHOTOS))
    prepare(photos, copy.run.job(copy.digests["prepare/glyphs"]).path)
    write_weights(copy, "vit_ti32", image_size=224, **SMALL)
    found = look(copy.run, copy.digests["pretrain"])
    assert found is not None
    drawings = found.insight.drawings
    assert drawings["rollout"].svg.count("data:image/jpeg;base64,") == 12
    assert sum(len(drawing.svg) for drawing in drawings.values()) < 350_000
