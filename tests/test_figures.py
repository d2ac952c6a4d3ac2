"Pictures and figures put things where the numbers say: the cases that lessons do not show."

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spfpn.features.keypoints import Keypoints
from spfpn.show.figures import (
    FIGURE_WIDTH,
    html_table,
    invalid_layer,
    keypoint_figure,
    match_figure,
    picture_panels,
    point_values,
    repeatability_figure,
    training_curves,
    warp_figure,
)
from spfpn.show.pictures import (
    SKY,
    VERMILLION,
    VIRIDIS,
    colorize,
    draw_matches,
    heat_layer,
    heatmap_picture,
    keypoint_picture,
    picture_grid,
    to_pil,
    zoom_picture,
)


def center_of(drawn: Image.Image) -> tuple[float, float]:
    "Center of gravity of what is not black, in the picture's pixels."
    weight = np.asarray(drawn.convert("L"), float)
    y, x = np.indices(weight.shape)
    return (x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()


@settings(max_examples=30, deadline=None)
@given(st.floats(6, 20), st.floats(6, 14), st.sampled_from([1, 1.5, 2, 3.7, 5]))
def test_ring_lies_on_its_point_at_any_scale(x, y, scale):
    drawn = keypoint_picture(torch.zeros(1, 20, 27), [[x, y]], "white", scale)
    expected = [(c + 0.5) * scale - 0.5 for c in (x, y)]
    assert center_of(drawn) == pytest.approx(expected, abs=0.06)  # 8 bits of gray


@pytest.mark.parametrize("scale", [0.3, 0.5, 1, 1.5, 2.25, 4])
def test_scale_is_exact(scale):
    "An edge between pixels 19 and 20 lies at 20 · scale from the left of the enlarged picture."
    image = torch.zeros(1, 30, 41)
    image[..., 20:] = 1
    row = np.asarray(zoom_picture(to_pil(image), scale), float)[5] / 255
    assert abs((len(row) - row.sum()) - 20 * scale) <= 0.5


def test_points_outside_and_not_finite_do_no_harm():
    shown = keypoint_picture(
        torch.zeros(1, 8, 8),
        torch.tensor([[-50.0, 3.0], [1e6, 2.0], [float("nan"), 1.0], [float("inf"), 2.0]]),
    )
    assert not np.asarray(shown).any()
    assert keypoint_picture(torch.zeros(1, 8, 8), torch.zeros(0, 2)).size == (8, 8)


def test_keypoints_are_points():
    xy = torch.tensor([[4.0, 5.0]])
    assert (
        keypoint_picture(torch.zeros(1, 9, 9), Keypoints(xy, torch.ones(1))).tobytes()
        == keypoint_picture(torch.zeros(1, 9, 9), xy).tobytes()
    )


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 1, 4, 4), (4,)])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=str(list(shape))[1:-1]):
        to_pil(torch.zeros(shape))


def test_heat_of_nothing_and_of_broken_values():
    assert np.asarray(heatmap_picture(torch.zeros(1, 4, 5))).shape == (4, 5, 3)
    assert (np.asarray(colorize(torch.tensor([[[float("nan"), 1.0]]]))) == [0, 255]).all()


def test_limits_make_heatmaps_comparable():
    assert np.asarray(colorize(torch.full((1, 2, 2), 0.5), (0, 1))).max() in (127, 128)


def test_side_by_side_grid_and_titles():
    tiles = [torch.full((1, 10, 20), 0.5)] * 5
    assert picture_grid(tiles, columns=2, gap=4).size == (44, 38)
    with pytest.raises(ValueError):
        picture_grid(tiles, ["one title"])


def test_panels_are_square_linked_and_upside_down():
    fig = picture_panels([Image.new("L", (30, 20))] * 2)
    assert fig.layout.xaxis2.matches == "x" and fig.layout.yaxis2.matches == "y"
    assert list(fig.layout.yaxis.range) == [19.5, -0.5] and fig.layout.yaxis.scaleanchor == "x"
    assert [(i.x, i.y, i.sizex, i.sizey, i.xref) for i in fig.layout.images] == [
        (-0.5, -0.5, 30, 20, "x"),
        (-0.5, -0.5, 30, 20, "x2"),
    ]


def test_scores_show_on_hover_and_names_are_escaped():
    points = Keypoints(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([2.5e-6, 1e-6]))
    trace = keypoint_figure(torch.zeros(1, 8, 8), points, "<b>").data[0]
    assert np.allclose(trace.customdata, [[2.5e-6, 1], [1e-6, 2]])
    assert "score %{customdata[0]:.3g}<br>rank %{customdata[1]:.0f}" in trace.hovertemplate
    assert "<b>" not in trace.hovertemplate


def test_points_without_scores_have_a_place_alone():
    values = point_values(torch.tensor([[1.0, 2.0]]))
    assert values["customdata"] is None and "score" not in values["hovertemplate"]


def test_warp_panels_hold_their_points():
    valid = torch.ones(1, 8, 9, dtype=bool)
    valid[0, :3] = False
    one, two = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    fig = warp_figure(torch.zeros(1, 8, 9), torch.zeros(1, 8, 9), valid, one, two)
    assert [(t.x[0], t.y[0], t.xaxis) for t in fig.data] == [(1, 2, "x"), (3, 4, "x2")]
    assert [image.xref for image in fig.layout.images] == ["x", "x2", "x2"]
    assert (np.asarray(invalid_layer(valid).convert("RGBA"))[..., 3] > 0).tolist() == (
        ~valid[0]
    ).tolist()


@pytest.mark.parametrize("n, rows", [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_panels_stand_two_in_a_row_each_480_px_wide(n, rows):
    fig = picture_panels([Image.new("L", (320, 240))] * n, list(map(str, range(n))))
    places = [
        (fig.layout[f"xaxis{k}"].domain, fig.layout[f"yaxis{k}"].domain) for k in range(1, n + 1)
    ]
    inside = FIGURE_WIDTH - 60, fig.layout.height - 86
    assert len({x for x, _ in places}) == min(n, 2) and len({y for _, y in places}) == rows
    for x, y in places:
        width, height = (side * (end - start) for side, (start, end) in zip(inside, (x, y)))
        assert min(width, height * 4 / 3) >= 480
    assert fig.layout.width is None and FIGURE_WIDTH <= 1140  # a notebook on 1366 px
    assert [a.text for a in fig.layout.annotations] == list(map(str, range(n)))


@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_a_few_high_scores_do_not_veil_the_photograph(scale):
    "ALIKED's: almost every pixel is far below the highest score."
    heatmap = 0.002 * torch.rand(1, 120, 160, generator=torch.Generator().manual_seed(0))
    heatmap[:, ::12, ::16] = 0.9
    heatmap[0, :8] = 0
    pixels = np.asarray(heat_layer(heatmap * scale).convert("RGBA"))
    assert (pixels[:8, :, 3] == 0).all() and (pixels[..., 3] == 0).mean() >= 0.5
    assert (pixels[12::12, ::16] == [*VIRIDIS[255], 255]).all()
    image = torch.rand(1, 120, 160, generator=torch.Generator().manual_seed(1))
    shown = np.asarray(heatmap_picture(heatmap * scale, image))
    assert (shown == np.asarray(to_pil(image).convert("RGB"))).all(2).mean() >= 0.5


@pytest.mark.parametrize("value", [0.0, 0.3, float("nan")])
def test_a_heatmap_of_one_value(value):
    alpha = np.asarray(heat_layer(torch.full((1, 4, 5), value)).convert("RGBA"))[..., 3]
    assert (alpha == (255 if value > 0 else 0)).all()


def test_matches_end_on_their_points_and_wrong_ones_differ():
    first, second = torch.zeros(1, 20, 30), torch.zeros(1, 16, 24)
    xy1, xy2 = torch.tensor([[2.0, 3.0], [10.0, 11.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    fig = match_figure(
        first, second, xy1, xy2, torch.tensor([[0, 1], [1, 0]]), errors=torch.tensor([0.5, 9.0])
    )
    assert list(fig.data[0].x[:2]) == [2, 30 + 8 + 7] and list(fig.data[1].y[:2]) == [11, 6]
    drawn = (
        np.asarray(draw_matches(first, second, xy1, xy2, [[0, 1], [1, 0]], errors=[0.5, 9.0]))
        .reshape(-1, 3)
        .tolist()
    )
    for color in (SKY, VERMILLION):
        assert [int(color[i : i + 2], 16) for i in (1, 3, 5)] in drawn


def test_curves_of_one_split_and_of_none():
    log = pd.DataFrame(dict(step=[2, 1], epoch=[0, 0], split="val", name="loss", value=[0.1, 0.2]))
    assert list(training_curves(log).data[0].x) == [1, 2]
    assert len(training_curves(log[:0]).data) == 0


def test_table_rounds_escapes_and_keeps_a_named_index():
    frame = pd.DataFrame(
        dict(rep=[0.12345, None], n=[3, 4]), index=pd.Index(["<b>x</b>", "y"], name="<detector>")
    )
    html = html_table(frame)
    assert (
        "0.123" in html
        and "–" in html
        and "&lt;detector&gt;" in html
        and "<b>" not in html
        and ">3<" in html
    )


def test_a_legend_takes_no_room_from_the_panels():
    image, points = torch.rand(1, 240, 320), torch.tensor([[10.0, 20.0]])
    plain = picture_panels([to_pil(image)] * 2)
    fig = repeatability_figure([image] * 2, [points] * 2, [torch.ones(1)] * 2)
    margin, panels = fig.layout.margin, plain.layout.height - 86
    assert fig.layout.height - margin.t - margin.b == panels
    begins = -fig.layout.legend.y * panels  # in pixels below the panels
    assert fig.layout.showlegend and fig.layout.legend.yanchor == "top"
    assert begins >= 30 and margin.b - begins >= 30  # under the axes' numbers, inside the figure
