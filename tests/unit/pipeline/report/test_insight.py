"""Looking into a model: the numbers under the pictures, and pictures that can live in a page."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.insight import attention_distance, patch_filters, position_similarity, rollout
from model.interface import ImageModel
from model.weights.files import save_weights
from model.zoo import create_model
from pipeline.config import AugmentSettings
from pipeline.data.augment import evaluation_pixels
from pipeline.data.decode import decode
from pipeline.errors import DataError, UserError
from pipeline.report.insight import Insight, draw, half_on, spread
from pipeline.report.insight_plots import filters
from pipeline.train.loop import normalise
from pipeline.train.trained import load_trained, read_images

SMALL = {"width": 48, "depth": 2, "heads": 3, "mlp": 96}
PHOTOS = sorted((Path(__file__).resolve().parents[3] / "data/photos/test").rglob("*.jpg"))[::14]


def small(name: str = "vit_ti8", **options: object) -> ImageModel:
    generator = torch.Generator().manual_seed(0)
    options = {"image_size": 32, **SMALL, **options}
    return create_model(name, num_classes=5, generator=generator, **options).eval()  # type: ignore[arg-type]


def pictures(count: int, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.manual_seed(1))


@pytest.fixture(scope="module")
def photos() -> Tensor:
    rows = [evaluation_pixels(AugmentSettings(), decode(path.read_bytes()), 224) for path in PHOTOS]  # type: ignore[arg-type]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def drawn(photos: Tensor) -> Insight:
    model = small("vit_ti32", image_size=224, width=96)
    return draw(model, photos, [path.stem for path in PHOTOS], shown=6)


# ---------------------------------------------------------------- numbers


def test_the_numbers_are_those_of_the_model() -> None:
    model, images = small(), pictures(9)
    names = [f"image {i}" for i in range(9)]
    found = draw(model, images, names, shown=3)
    assert list(found.drawings) == list(found.numbers) == ["rollout", "filters", "positions", "distance"]
    assert found.left_out == {}
    x = normalise(images)
    rows = found.numbers["rollout"]["images"]
    assert [row["image"] for row in rows] == ["image 0", "image 4", "image 8"]
    expected = rollout(model, x)[4]  # type: ignore[arg-type]
    np.testing.assert_allclose(rows[1]["shares"], expected / expected.sum(), atol=1e-6)
    assert rows[1]["half_on"] == half_on(np.array(rows[1]["shares"]))
    pixels = attention_distance(model, [x])  # type: ignore[arg-type]
    np.testing.assert_allclose(found.numbers["distance"]["pixels"], pixels, atol=0.01)
    assert found.numbers["distance"]["images"] == 9
    np.testing.assert_allclose(
        found.numbers["positions"]["similarity"],
        position_similarity(model),
        atol=1e-3,  # type: ignore[arg-type]
    )
    shares = found.numbers["filters"]["shares"]
    assert len(shares) == 28
    np.testing.assert_allclose(shares, patch_filters(model, 28)[1], atol=1e-4)  # type: ignore[arg-type]
    json.dumps(found.numbers)


def test_even_attention_is_the_mean_distance_of_patches() -> None:
    model = small()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.zero_()  # type: ignore[union-attr]
            block.attention.qkv.bias.zero_()  # type: ignore[union-attr]
    found = draw(model, pictures(2), ["a", "b"], shown=2).numbers
    even = found["distance"]["even"]
    # One of 17 tokens is the class token, whose share goes nowhere.
    np.testing.assert_allclose(found["distance"]["pixels"], np.full((2, 3), even * 16 / 17), atol=0.02)
    assert [row["half_on"] for row in found["rollout"]["images"]] == [8, 8]


def test_half_of_the_attention() -> None:
    assert half_on(np.array([[0.1, 0.6], [0.2, 0.1]])) == 1
    assert half_on(np.array([[0.4, 0.1], [0.3, 0.2]])) == 2
    assert half_on(np.full((10, 10), 0.01)) == 50


def test_images_are_chosen_evenly() -> None:
    assert spread(128, 6) == [0, 25, 51, 76, 102, 127]
    assert spread(3, 6) == [0, 1, 2]
    assert spread(1, 6) == [0]


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"positions": "none"}, {"positions": "adds no positions"}),
        ({"positions": "relative"}, {"positions": "adds no positions"}),
        ({"stem": (), "patch": 2}, {"filters": "embeds a stem's output"}),
        ({"pool": "gap", "positions": "sincos2d"}, {}),
    ],
)
def test_what_a_model_does_not_have_is_left_out(options: dict[str, object], missing: dict[str, str]) -> None:
    found = draw(small(**options), pictures(1), ["a"], shown=1)
    assert found.left_out.keys() == missing.keys()
    for name, reason in missing.items():
        assert reason in found.left_out[name]
    assert found.drawings.keys() == found.numbers.keys()
    assert len(found.drawings) == 4 - len(missing)


def test_a_resnet_has_none_of_it() -> None:
    bit = create_model("bit_r26x1", num_classes=5, image_size=32, blocks=(1,)).eval()
    found = draw(bit, pictures(1), ["a"], shown=1)
    assert found.drawings == {}
    assert set(found.left_out.values()) == {"bit_r26x1 is a ResNet: no attention, patches or positions"}


def test_a_tiny_width_has_fewer_filters() -> None:
    found = draw(small(width=12, heads=3), pictures(1), ["a"], shown=1)
    assert len(found.numbers["filters"]["shares"]) == 11


# ---------------------------------------------------------------- drawings


def test_the_same_model_gives_the_same_bytes() -> None:
    first, again = (draw(small(), pictures(2), ["a", "b"], shown=2) for _ in range(2))
    assert again == first


def test_drawings_of_photos_are_small(drawn: Insight) -> None:
    assert sum(len(drawing.svg) for drawing in drawn.drawings.values()) < 400_000


def test_drawings_load_nothing_and_keep_their_ids(drawn: Insight) -> None:
    ids: list[str] = []
    for name, drawing in drawn.drawings.items():
        references = re.findall(r'href="([^"]{0,30})', drawing.svg)
        assert references
        for reference in references:
            assert reference.startswith((f"#{name}-", "data:image/png;base64,", "data:image/jpeg;base64,"))
        mine = re.findall(r'\bid="([^"]*)"', drawing.svg)
        assert all(one.startswith(f"{name}-") for one in mine)
        ids += mine
        assert re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", drawing.svg) == []
        assert "<text" in drawing.svg
    assert len(ids) == len(set(ids))


def test_the_rollout_shows_each_image_above_its_mask(photos: Tensor, drawn: Insight) -> None:
    found = re.findall(r"data:image/jpeg;base64,([^\"]*)", drawn.drawings["rollout"].svg)
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))), dtype=float) for one in found]
    assert len(images) == 12
    maps = re.findall(r"data:image/png;base64,([^\"]*)", drawn.drawings["rollout"].svg)
    assert len(maps) == 6
    for one in maps:  # the scale of each image goes up to its own largest share
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB"))
        assert pixels.reshape(-1, 3).max(axis=0).tolist() == [253, 231, pixels[..., 2].max()]
    for i, photo in enumerate(photos):
        shown, masked = images[2 * i], images[2 * i + 1]
        assert np.abs(shown - photo.permute(1, 2, 0).numpy()).mean() < 8
        assert masked.mean() < shown.mean()
        assert (masked <= shown + 60).all()
    for path in PHOTOS:
        assert path.stem in drawn.drawings["rollout"].svg


def test_names_of_images_are_text() -> None:
    name = '<img src="x">$\\frac$&\x00\u202e'
    svg = draw(small(), pictures(1), [name], shown=1).drawings["rollout"].svg
    assert "<img" not in svg
    assert "&lt;img" in svg
    assert "\u202e" not in svg


def test_the_sign_of_a_component_is_not_left_to_chance() -> None:
    components = torch.randn(5, 3, 4, 4, generator=torch.manual_seed(0))
    shares = np.full(5, 0.2)
    turned = components * torch.tensor([1, -1, 1, -1, -1]).view(5, 1, 1, 1)
    assert filters(components, shares).svg == filters(turned, shares).svg
    assert filters(components, shares).svg != filters(components.flip(0), shares).svg


def test_a_fine_grid_has_fewer_tiles() -> None:
    drawing = draw(small("vit_ti4", image_size=80), pictures(1, 80), ["a"], shown=1).drawings["positions"]
    labels = re.findall(r">(\d+)</text>", drawing.svg)
    assert labels[:10] == ["1", "3", "5", "7", "9", "11", "13", "15", "17", "19"]


# ---------------------------------------------------------------- a weights file


def test_images_are_prepared_as_in_training(tmp_path: Path) -> None:
    header = {
        "preprocessing": json.dumps({"image_size": 32, "evaluate": "centre", "larger": 1.5, "scale": ""})
    }
    path = tmp_path / "w.safetensors"
    model = small()
    save_weights(path, model.state_dict(), model.config.to_dict(), header)
    trained = load_trained(path)
    assert trained.note == ""
    assert not trained.model.training
    pixels = decode(PHOTOS[0].read_bytes())
    assert not isinstance(pixels, str)
    expected = evaluation_pixels(AugmentSettings(evaluate="centre", larger=1.5), pixels, 32)
    found = read_images(trained, PHOTOS[:2])
    assert found.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(found[0].permute(1, 2, 0), expected)
    assert np.abs(expected.astype(int) - evaluation_pixels(AugmentSettings(), pixels, 32)).mean() > 1
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(trained.model(x), model(x))


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="no weight file at"):
        load_trained(path)
    model = small()
    save_weights(path, model.state_dict(), model.config.to_dict())
    trained = load_trained(path)
    assert "does not say how images were prepared" in trained.note
    text = tmp_path / "a.jpg"
    text.write_text("no image")
    with pytest.raises(DataError, match=r"a\.jpg cannot be decoded: not an image"):
        read_images(trained, [text])
    with pytest.raises(UserError, match=r"none\.jpg: No such file"):
        read_images(trained, [tmp_path / "none.jpg"])
