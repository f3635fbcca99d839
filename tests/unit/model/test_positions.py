"""Position tables: what they add, and how each source resizes them."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from model import create_model
from model.positions import RESIZE_RULES, Positions, resize_positions, sincos_table
from model.zoo import model_config

SMALL = {"width": 16, "depth": 3, "heads": 2, "mlp": 16}


def positions(**options: object) -> Positions:
    model = create_model("vit_ti8", num_classes=2, image_size=(16, 24), **{**SMALL, **options})  # type: ignore[arg-type]
    found = model.get_submodule("positions")
    assert isinstance(found, Positions)
    return found


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_learned_positions_are_added_to_the_class_token_too() -> None:
    module = positions()
    assert torch.equal(module(torch.zeros(2, 7, 16), 0)[1], module.table[0])
    assert [module.acts_at(layer) for layer in range(3)] == [True, False, False]


@pytest.mark.parametrize(("place", "tables"), [("layers", 3), ("layers_shared", 1)])
def test_positions_at_every_layer_have_own_or_shared_tables(place: str, tables: int) -> None:
    module = positions(positions_at=place)
    assert module.table.shape == (tables, 7, 16)
    assert all(module.acts_at(layer) for layer in range(3))
    same = torch.equal(module.added(0), module.added(2))
    assert same == (tables == 1)


def test_two_dimensional_tables_put_column_and_row_side_by_side() -> None:
    module = positions(positions="learned2d")
    table = module.added(0)
    assert not table[0].any(), "the class token has no place in the grid"
    for row in range(2):
        for column in range(3):
            expected = torch.cat([module.columns[0, column], module.rows[0, row]])
            assert torch.equal(table[1 + row * 3 + column], expected)


def test_sines_and_cosines_are_big_visions() -> None:
    table = sincos_table((2, 3), 8)
    frequency = 1 / 10_000 ** (np.arange(2) / 1)
    for row in range(2):
        for column in range(3):
            x, y = column * frequency, row * frequency
            expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])
            np.testing.assert_allclose(table[row * 3 + column].numpy(), expected, atol=1e-6)


def test_fixed_positions_are_neither_parameters_nor_saved() -> None:
    module = positions(positions="sincos2d")
    assert not list(module.parameters())
    assert not module.state_dict()
    assert not module.added(0)[0].any()
    torch.testing.assert_close(module.added(0)[1:], sincos_table((2, 3), 16))


def test_default_resizing_is_scipys_linear_zoom_with_the_class_row_untouched() -> None:
    table = noise(1, 1 + 4 * 4, 5)
    resized = resize_positions(table, (4, 4), (6, 7), has_class_token=True)
    assert torch.equal(resized[:, 0], table[:, 0])
    zoomed = ndimage.zoom(table[0, 1:].view(4, 4, 5).numpy(), (6 / 4, 7 / 4, 1), order=1)
    np.testing.assert_allclose(resized[0, 1:].view(6, 7, 5).numpy(), zoomed, atol=1e-5)


def test_rectangles_keep_rows_and_columns_apart() -> None:
    table = noise(1, 3 * 5, 4)
    resized = resize_positions(table, (3, 5), (6, 7), has_class_token=False)
    zoomed = ndimage.zoom(table[0].view(3, 5, 4).numpy(), (2, 7 / 5, 1), order=1)
    np.testing.assert_allclose(resized[0].view(6, 7, 4).numpy(), zoomed, atol=1e-5)


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_each_rule_is_its_own_and_keeps_a_constant(rule: str) -> None:
    table = noise(9, 3)
    resized = resize_positions(table, (3, 3), (5, 4), has_class_token=False, rule=rule)
    image = table.T.reshape(1, 3, 3, 3)
    expected = F.interpolate(image, size=(5, 4), **RESIZE_RULES[rule])
    torch.testing.assert_close(resized, expected[0].flatten(1).T)
    flat = resize_positions(torch.ones(9, 3), (3, 3), (5, 4), has_class_token=False, rule=rule)
    torch.testing.assert_close(flat, torch.ones(20, 3))


def test_rules_differ_from_each_other() -> None:
    table = noise(196, 8)
    results = [
        resize_positions(table, (14, 14), (24, 24), has_class_token=False, rule=rule) for rule in RESIZE_RULES
    ]
    for i, first in enumerate(results):
        for second in results[:i]:
            relative = (first - second).square().mean().sqrt() / second.square().mean().sqrt()
            # Growing, an antialiasing filter has nothing to do.
            assert relative > 0.05 or {i, results.index(second)} == {2, 4}


def test_leading_axes_are_resized_alike_and_dtype_stays() -> None:
    tables = noise(3, 10, 4).bfloat16()
    resized = resize_positions(tables, (3, 3), (4, 4), has_class_token=True)
    assert (resized.shape, resized.dtype) == ((3, 17, 4), torch.bfloat16)
    assert torch.equal(resized[1], resize_positions(tables[1], (3, 3), (4, 4), has_class_token=True))


def test_the_same_grid_changes_no_bit() -> None:
    table = noise(1, 10, 4)
    assert torch.equal(resize_positions(table, (3, 3), (3, 3), has_class_token=True), table)


def test_a_table_of_another_grid_or_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="position table has 10 rows, expected 9 for a grid of 3x3; give"):
        resize_positions(noise(10, 4), (3, 3), (4, 4), has_class_token=False)
    with pytest.raises(ValueError, match="unknown resize rule 'bicubik'; did you mean 'bicubic'"):
        resize_positions(noise(10, 4), (3, 3), (4, 4), has_class_token=True, rule="bicubik")


def test_relative_offsets_have_a_table_for_each_layer() -> None:
    config = model_config("vit_ti8", num_classes=2, image_size=(16, 24), positions="relative", **SMALL)
    assert config.to_dict()["positions_at"] == "layers"
    model = create_model("vit_ti8", num_classes=2, image_size=(16, 24), positions="relative", **SMALL)
    assert model.get_parameter("offsets.table").shape == (3, 13, 16)
