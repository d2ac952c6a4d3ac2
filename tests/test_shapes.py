"""Synthetic Shapes: what a user would miss if it broke."""

import numpy as np
import pytest
import torch

from spfpn.data.canvas import Canvas, downsample_drawing
from spfpn.data.shapes import SHAPE_KINDS, SHAPE_WEIGHTS, draw_shape, sample_shapes


@pytest.mark.parametrize("kind", SHAPE_KINDS)
def test_image_in_range_and_corners_inside(kind):
    for seed, noise in ((0, False), (1, True)):
        shape = draw_shape(kind, np.random.default_rng(seed), (96, 128), noise)
        assert shape.image.shape == (1, 96, 128) and shape.image.dtype == torch.float32
        assert shape.image.min() >= 0 and shape.image.max() <= 1
        assert shape.corners.shape[1:] == (2,)
        assert (shape.corners >= 0).all() and (shape.corners <= torch.tensor([127, 95])).all()


def test_corner_coordinates_keep_the_half_pixel():
    _, xy = downsample_drawing(
        np.zeros((80, 80), np.uint8), [[0, 0], [43.5, 11.5], [80, 40]], (10, 10)
    )
    assert np.allclose(xy, [[5, 1]])  # the others lie beyond the centres of the outermost pixels


def test_a_covered_corner_is_no_corner_but_a_shared_one_is():
    canvas = Canvas(np.random.default_rng(0), (400, 400))
    canvas.polygon([(50, 50), (150, 50), (150, 150), (50, 150)], 255)
    # a neighboring cell: two corners shared
    canvas.polygon([(150, 50), (250, 50), (250, 150), (150, 150)], 0)
    assert len(canvas.corners) == 6
    canvas.line((50, 150), (50, 300), 128, 10)  # starts at a corner, hides none
    assert len(canvas.corners) == 7
    canvas.polygon([(10, 10), (390, 10), (390, 390), (10, 390)], 60)  # hides all
    assert sorted(canvas.corners.tolist()) == [[10, 10], [10, 390], [390, 10], [390, 390]]


def test_mixture_has_the_weights_and_repeats():
    shapes = sample_shapes(33, seed=3)
    counts = {kind: sum(s.kind == kind for s in shapes) for kind in SHAPE_KINDS}
    assert all(abs(counts[kind] - 5 * SHAPE_WEIGHTS[kind]) <= 1 for kind in SHAPE_KINDS)
    sample_shapes.cache_clear()
    again = sample_shapes(33, seed=3)
    assert all(
        torch.equal(a.image, b.image) and torch.equal(a.corners, b.corners)
        for a, b in zip(shapes, again)
    )


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="checkerboard"):
        draw_shape("chessboard", np.random.default_rng(0))
