"Controls are set in Python, and what is drawn is computed again without the widget."

import asyncio
import base64
import io
import re
from datetime import datetime

import comm
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from spfpn.core.config import Config
from spfpn.core.registry import DETECTORS
from spfpn.core.runs import RunFolder
from spfpn.data.images import folder_images, sample_images
from spfpn.data.sequences import warped_sample_sequences
from spfpn.evaluate.protocol import PredictionCache, get_protocol
from spfpn.evaluate.repeatability import R1
from spfpn.evaluate.results import evaluate_detectors
from spfpn.features.factory import make_detector
from spfpn.features.keypoints import (
    Keypoints,
    Selection,
    extract_keypoints,
    select_keypoints,
)
from spfpn.features.student import StudentDetector
from spfpn.geometry.homography import warp_image
from spfpn.labels.masks import blob_mask
from spfpn.models.spfpn import SPFPN
from spfpn.show.figures import keypoint_figure
from spfpn.show.image_explorers import (
    HeatmapExplorer,
    MaskExplorer,
    loss_table,
    selection_candidates,
    selection_threshold,
)
from spfpn.show.pair_explorer import PairExplorer
from spfpn.show.run_explorers import ResultsExplorer, TrainingExplorer
from spfpn.show.warp_explorer import WarpExplorer
from spfpn.show.widgets import StatefulFigure
from spfpn.train.losses import masked_huber_loss, spatial_kl_loss

SIZE = (96, 128)


def drawn(explorer, trace: int = 0) -> np.ndarray:
    "The points of a trace, [N, 2]."
    trace = explorer.figure.data[trace]
    return np.stack([trace.x, trace.y], 1)


def rotation(degrees: float) -> np.ndarray:
    "About the center of an image of SIZE, +x towards +y, written out without the library."
    a, (cx, cy) = np.radians(degrees), ((SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2)
    to, back = np.eye(3), np.eye(3)
    to[:2, 2], back[:2, 2] = (-cx, -cy), (cx, cy)
    return back @ [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]] @ to


def carried(xy: np.ndarray, H: np.ndarray) -> np.ndarray:
    "Points under H, those inside an image of SIZE."
    moved = np.c_[xy, np.ones(len(xy))] @ H.T
    moved = moved[:, :2] / moved[:, 2:]
    return moved[((moved >= 0) & (moved <= [SIZE[1] - 1, SIZE[0] - 1])).all(1)]


def uploaded(name: str, content: bytes) -> list:
    return [
        dict(
            name=name,
            type="image/png",
            size=len(content),
            content=content,
            last_modified=datetime.now(),
        )
    ]


@pytest.fixture
def heatmaps():
    return HeatmapExplorer(
        sample_images(limit=2), [make_detector("harris"), make_detector("sift")], SIZE
    )


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return StudentDetector(SPFPN(channels=8), name="untrained")


class Fixed:
    "A detector of known points."

    name, selection = "fixed", Selection()
    xy = torch.tensor([[40.0, 30.0], [90.0, 60.0]])

    def detect(self, images):
        return [Keypoints(self.xy, torch.ones(len(self.xy)))]


@pytest.mark.parametrize("panel, detector", [(0, "harris"), (1, "sift")])
def test_heatmap_points_follow_the_sliders(heatmaps, panel, detector):
    for points, radius, subpixel in ((30, 4, False), (15, 8, False), (20, 2, True)):
        for name, value in dict(points=points, radius=radius, subpixel=subpixel).items():
            heatmaps.controls[name].value = value
        scores, every = selection_candidates(
            make_detector(detector), sample_images().load(0, SIZE)[0]
        )
        selection = Selection(points, radius, subpixel=subpixel)
        expected = (
            extract_keypoints(scores, selection)[0]
            if every is None
            else select_keypoints(every, SIZE, selection)
        )
        assert len(expected) == points and np.allclose(drawn(heatmaps, panel), expected.xy)
        values = heatmaps.figure.data[panel].customdata
        assert np.allclose(values[:, 0], expected.scores)
        assert (values[:, 1] == np.arange(1, points + 1)).all()
        title = heatmaps.figure.layout.annotations[panel].text
        assert title.startswith(f"{detector}: {points} of ") and title in heatmaps.message.value


def test_the_threshold_in_words_selects_the_points_shown(heatmaps):
    image = sample_images().load(0, SIZE)[0]
    for name, points in zip(("harris", "sift"), heatmaps.points):
        said = re.search(
            f"{name}: (\\d+) of (\\d+) points, threshold ([^,]+)", heatmaps.message.value
        )
        shown, every, threshold = int(said[1]), int(said[2]), float(said[3])
        ranked = heatmaps.ranked(heatmaps["image"], name, 4, False)
        assert len(points) == shown and len(ranked) == every
        assert selection_threshold(ranked, shown) == pytest.approx(threshold, rel=5e-3)
        selection = Selection(1000, threshold=selection_threshold(ranked, shown))
        assert len(make_detector(name, selection).detect(image[None])[0]) == shown


def test_the_explorer_shows_points_where_detect_gives_them(tmp_path):
    "Not where a photograph has no contrast, whatever kind of detector it is."
    half = (sample_images().load(0, SIZE)[0][0] * 255).byte().numpy()
    half[:, :64] = 128
    for name, pixels in (("1-flat.png", np.full(SIZE, 90, np.uint8)), ("2-half.png", half)):
        Image.fromarray(pixels).save(tmp_path / name)
    kinds = [make_detector("harris"), make_detector("sift"), make_detector("spfpn-s"), Fixed()]
    explorer = HeatmapExplorer(folder_images(tmp_path), kinds, SIZE)
    assert [len(points) for points in explorer.points] == [0] * len(kinds)
    assert [text.text.split(": ")[1] for text in explorer.figure.layout.annotations] == [
        "0 of 0 points"
    ] * len(kinds)
    for name, value in dict(image=tmp_path / "2-half.png", points=1000, subpixel=True).items():
        explorer.controls[name].value = value
    image = torch.from_numpy(half)[None, None] / 255
    for detector, points in zip(kinds[:3], explorer.points):
        selection = Selection(subpixel=True)
        (found,) = make_detector(detector.name, selection).detect(image)
        assert len(found) and torch.allclose(points.xy, found.xy, atol=1e-3)
    assert explorer.points[3].xy.tolist() == Fixed.xy[1:].tolist()


def test_every_detector_shows_as_many_points_by_default():
    "With one share of the highest score for all, Harris had 23 points beside another's 250."
    fetched = ("superpoint", "xfeat", "edgepoint2")  # their weights are not in a package
    local = [name for name in DETECTORS.names() if not name.startswith(fetched)]
    explorer = HeatmapExplorer(
        sample_images(limit=2), list(map(make_detector, local)), most=len(local)
    )
    for i in range(2):
        explorer.controls["image"].index = i
        assert [len(points) for points in explorer.points] == [100] * len(local)


def test_scores_are_computed_once_and_opacity_leaves_points_alone(heatmaps):
    heatmaps.controls["points"].value = 40
    before, passes = drawn(heatmaps), heatmaps.seen.cache_info().misses
    heatmaps.controls["opacity"].value = 0.2
    assert heatmaps.figure.layout.images[2].opacity == 0.2 and (drawn(heatmaps) == before).all()
    heatmaps.controls["radius"].value = 6
    assert heatmaps.seen.cache_info().misses == passes == 2


def test_panels_show_what_is_chosen_for_them(heatmaps):
    assert [image.visible for image in heatmaps.figure.layout.images[2:]] == [
        True,
        False,
    ]  # SIFT has no heatmap
    heatmaps.controls["detector1"].value = "harris"
    assert (
        heatmaps.figure.layout.images[3].visible
        and heatmaps.figure.layout.images[3].source == heatmaps.figure.layout.images[2].source
    )
    assert (drawn(heatmaps, 0) == drawn(heatmaps, 1)).all()


def test_a_folder_and_an_upload_are_shown(heatmaps, tmp_path):
    photo = Image.fromarray((np.random.default_rng(0).random((60, 80)) * 255).astype(np.uint8))
    photo.save(tmp_path / "mine.png")
    before = heatmaps.figure.layout.images[0].source
    heatmaps.controls["source"].value = str(tmp_path)
    assert [name for name, _ in heatmaps.controls["image"].options] == [
        "mine.png"
    ] and heatmaps.figure.layout.images[0].source != before
    content = io.BytesIO()
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(content, "PNG")
    heatmaps.controls["upload"].value = uploaded("../up.png", content.getvalue())
    assert [name for name, _ in heatmaps.controls["image"].options] == ["../up.png", "mine.png"]
    mirrored = heatmaps.photograph
    heatmaps.controls["image"].index = 1
    assert torch.allclose(mirrored, heatmaps.photograph.flip(-1), atol=0.01)
    assert [p.name for p in tmp_path.parent.rglob("up.png")] == []  # its name is never a path


def test_an_upload_is_never_taken_for_an_earlier_one(heatmaps, tmp_path):
    Image.new("L", SIZE[::-1]).save(tmp_path / "mine.png")
    places = []
    for level, folder in (
        (40, str(tmp_path)),
        (90, f"{tmp_path}/"),
    ):  # a menu as long as before the upload
        content = io.BytesIO()
        Image.effect_noise(SIZE[::-1], level).save(content, "PNG")
        heatmaps.controls["source"].value = folder
        heatmaps.controls["upload"].value = uploaded("a.png", content.getvalue())
        places.append((heatmaps["image"], content.getvalue()))
    assert all(
        path.read_bytes() == content for path, content in places
    )  # what was seen in one is kept by its path


@pytest.mark.parametrize(
    "control, value, said",
    [
        ("source", "/no/such<folder>", "/no/such&lt;folder&gt;: no such folder"),
        ("upload", uploaded("<img src=x>", b"GIF89a"), "&lt;img src=x&gt;: not a readable image"),
    ],
)
def test_bad_sources_are_messages_and_change_nothing(heatmaps, control, value, said):
    options, image = heatmaps.controls["image"].options, heatmaps.photograph
    heatmaps.controls[control].value = value
    assert said in heatmaps.message.value and "<img" not in heatmaps.message.value
    assert heatmaps.controls["image"].options == options and heatmaps.photograph is image


def test_the_first_readable_photograph_is_shown(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.jpg").write_bytes(b"")
    explorer = HeatmapExplorer(folder_images(tmp_path), [make_detector("harris")], SIZE)
    assert (
        "none of 2 images can be read" in explorer.message.value
        and "a.png" in explorer.message.value
    )
    explorer.controls["points"].value = 20
    assert "none of 2 images can be read" in explorer.message.value
    Image.fromarray((np.random.default_rng(0).random((60, 80)) * 255).astype(np.uint8)).save(
        tmp_path / "c.png"
    )
    explorer.controls["source"].value = str(tmp_path)
    for shown in (
        explorer,
        HeatmapExplorer(folder_images(tmp_path), [make_detector("harris")], SIZE),
    ):
        assert (
            "2 of 3 skipped" in shown.message.value
            and "a.png" in shown.message.value
            and shown["image"].name == "c.png"
        )
        assert len(drawn(shown)) and shown.photograph.shape == (1, *SIZE)


def test_a_page_that_opens_later_begins_with_what_is_shown(heatmaps):
    "Also one that is loaded again: it has heard none of the changes."
    heatmaps.controls["points"].value = 20
    begins = heatmaps.figure.get_state(["_widget_data", "_widget_layout"])
    assert [image["source"] for image in begins["_widget_layout"]["images"]] == [
        image.source for image in heatmaps.figure.layout.images
    ]
    assert (
        len({image["source"] for image in begins["_widget_layout"]["images"]}) == 3
    )  # photograph, heatmap, and SIFT has none
    assert [
        len(trace["x"]["shape"]) and trace["x"]["shape"][0] for trace in begins["_widget_data"]
    ] == [len(trace.x) for trace in heatmaps.figure.data]


def test_a_figure_opens_with_its_content(monkeypatch):
    "Content that comes later is lost on a page that is slow to load plotly.js: panels stay blank."
    opened, create = [], comm.create_comm

    def create_comm(**options):
        opened.append(options["data"]["state"])
        return create(**options)

    monkeypatch.setattr(comm, "create_comm", create_comm)
    StatefulFigure(keypoint_figure(torch.zeros(1, 8, 8), torch.tensor([[1.0, 2.0]])))
    (state,) = (state for state in opened if "_widget_data" in state)
    assert len(state["_widget_data"]) == len(state["_widget_layout"]["images"]) == 1


def test_errors_become_messages():
    class Broken:
        name = "broken <b>"

        def heatmap(self, images):
            raise RuntimeError("no <weights>")

    message = HeatmapExplorer(sample_images(limit=1), [Broken()], SIZE).message.value
    assert "RuntimeError: no &lt;weights&gt;" in message


@pytest.mark.parametrize("degrees", [0, 30, 90, -135])
def test_warped_points_are_H_times_x(degrees):
    warps = WarpExplorer(
        sample_images(limit=1), make_detector("harris", Selection(max_keypoints=50)), SIZE
    )
    warps.controls["rotation"].value = degrees
    expected = carried(drawn(warps, 0), rotation(degrees))
    assert len(expected) and np.allclose(drawn(warps, 1), expected, atol=1e-3)


def test_every_control_of_the_warp_moves_the_points():
    warps = WarpExplorer(
        sample_images(limit=1), make_detector("harris", Selection(max_keypoints=50)), SIZE
    )
    for name, value in dict(
        scale=1.3, tilt_x=0.2, tilt_y=-0.2, right=0.1, down=-0.1, random=None, reset=None
    ).items():
        before, control = drawn(warps, 1), warps.controls[name]
        if value is None:
            control.click()
        else:
            control.value = value
        now = drawn(warps, 1)
        assert np.allclose(now, carried(drawn(warps, 0), warps.H().numpy()), atol=1e-3), name
        assert now.shape != before.shape or not np.allclose(now, before), name


def test_random_moves_the_sliders():
    warps = WarpExplorer(sample_images(limit=1), make_detector("harris"), SIZE)
    names = ("rotation", "scale", "tilt_x", "tilt_y", "right", "down")
    start, shown = [warps[name] for name in names], []
    other = WarpExplorer(sample_images(limit=1), make_detector("harris"), SIZE)
    for _ in range(5):
        warps.controls["random"].click()
        shown.append([warps[name] for name in names])
        other.place(**dict(zip(names, shown[-1])))  # the sliders say it all
        assert torch.equal(other.H(), warps.H()) and warps.valid.float().mean() >= 0.5
    assert len(set(map(tuple, shown))) == len(shown) and start not in shown
    assert all(abs(rotation) <= 30 for rotation, *_ in shown)
    for values in shown:  # where the browser's sliders can stand
        steps = [warps.controls[name].step for name in names]
        assert np.allclose(np.array(values) / steps, np.round(np.array(values) / steps))
    warps.controls["reset"].click()
    assert [warps[name] for name in names] == start


def test_pixels_outside_the_photograph_are_marked_in_the_warp():
    warps = WarpExplorer(sample_images(limit=1), make_detector("harris"), SIZE)
    warps.controls["right"].value = 0.5
    content = base64.b64decode(warps.figure.layout.images[2].source.partition(",")[2])
    marked = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[..., 3] > 0
    assert (marked == ~warps.valid[0, 0].numpy()).all() and 0.4 < marked.mean() < 0.6


def test_matches_need_a_teacher():
    warps = WarpExplorer(sample_images(limit=1), make_detector("harris"), SIZE)
    warps.controls["matches"].value = True
    assert "harris has no descriptors to match" in warps.message.value
    warps.controls["rotation"].value = 5
    assert not warps["matches"] and "stay inside" in warps.message.value


@pytest.mark.parametrize("kind, loss", [("huber", masked_huber_loss), ("kl", spatial_kl_loss)])
def test_consistency_map_adds_up_to_the_loss_shown(student, kind, loss):
    warps = WarpExplorer(
        sample_images(limit=1), make_detector("harris", Selection(max_keypoints=50)), SIZE, student
    )
    warps.controls["consistency"].value = kind
    warps.controls["rotation"].value = 20
    expected = loss(warp_image(warps.logits, warps.H()), warps.target, warps.valid)
    value = warps.terms[warps.valid].mean() if kind == "huber" else warps.terms.sum()
    assert torch.isclose(value, expected, rtol=1e-4) and f"{expected:.4g}" in warps.message.value
    assert (warps.terms[~warps.valid] == 0).all() and (~warps.valid).any()


def test_consistency_stays_where_it_is_while_matches_come_and_go(student):
    "A figure that is taken out of the page and put back is deaf there."
    warps = WarpExplorer(
        sample_images(limit=1), make_detector("aliked", Selection(max_keypoints=30)), SIZE, student
    )
    warps.controls["consistency"].value = "huber"
    (figure,) = warps.extra["consistency"].children
    for on in (True, False):
        warps.controls["matches"].value = on
        assert len(warps.extra["matches"].children) == on and warps.extra[
            "consistency"
        ].children == (figure,)
    before = figure.layout.images[1].source
    warps.controls["rotation"].value = 40
    assert figure.layout.images[1].source != before and warps.extra["consistency"].children == (
        figure,
    )
    warps.controls["consistency"].value = "off"
    assert warps.extra["consistency"].children == ()


def test_mask_cross_section_is_the_formula():
    masks = MaskExplorer(sample_images(limit=1), Fixed(), SIZE)
    for name, value in dict(kind="smoothed", sigma=3.0, low=0.2, high=0.8, point=1).items():
        masks.controls[name].value = value
    x, y = np.meshgrid(np.arange(SIZE[1]), 60)
    distance = ((np.stack([x, y], -1)[0, :, None] - Fixed.xy.numpy()) ** 2).sum(-1)
    # blobs are drawn out to 4 σ, where 3e-4 of the height is left
    assert np.allclose(masks.figure.data[1].y, 0.2 + 0.6 * np.exp(-distance / 18).max(1), atol=3e-4)
    assert list(masks.figure.data[0].y) == [60, 60] and list(masks.figure.data[0].x) == [
        90 - masks.reach,
        90 + masks.reach,
    ]


def test_mask_without_a_range_says_so():
    masks = MaskExplorer(sample_images(limit=1), Fixed(), SIZE)
    masks.controls["kind"].value = "smoothed"
    masks.controls["low"].value = 0.9
    assert "low must lie below high" in masks.message.value


def test_losses_of_a_perfect_prediction_and_of_masks_they_do_not_fit():
    mask = torch.full((1, 1, 8, 8), 0.25)
    values = loss_table(mask.logit(), mask).set_index("loss").value
    assert (
        values[["Bernoulli KL", "Huber, δ .1", "KL of softmax", "KL of normalized mask"]]
        .abs()
        .max()
        < 1e-5
    )
    assert values[["sigmoid focal", "penalty-reduced focal"]].isna().all()
    binary = torch.zeros(1, 1, 8, 8)
    binary[0, 0, 3, 3] = 1
    values = loss_table(torch.zeros(1, 1, 8, 8), binary).set_index("loss").value
    # p = ½ everywhere: (1/4)² … each of 63 pixels ¾·¼·ln 2, the keypoint ¼·¼·ln 2
    assert np.isclose(values["sigmoid focal"], (63 * 0.75 + 0.25) * 0.25 * np.log(2)) and np.isnan(
        values["Bernoulli KL"]
    )


def test_a_student_is_shown_beside_its_target(student):
    masks = MaskExplorer(sample_images(limit=1), Fixed(), SIZE, student)
    assert np.allclose(masks.figure.data[4].y, masks.logits[0, 0].sigmoid()[30]) and np.allclose(
        masks.figure.data[3].y, masks.mask[0, 30]
    )
    before = masks.losses.value
    masks.controls["sigma"].value = 4.0
    assert masks.losses.value != before


def log(folder, run: str, epochs: int):
    path = RunFolder(folder / run).phase(1).log
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        dict(step=10 * e, epoch=e, split=split, name="loss", value=1 / e)
        for e in range(1, epochs + 1)
        for split in ("train", "val")
    ]
    pd.DataFrame(rows).to_parquet(path)


def test_training_without_a_run_says_so(tmp_path):
    training = TrainingExplorer(tmp_path)
    assert "no run with a log.parquet" in training.message.value
    log(tmp_path, "first", 2)
    training.controls["refresh"].click()
    assert [t.name for t in training.figure.data] == [
        "first/phase1 train",
        "first/phase1 val",
    ] and list(training.figure.data[0].x) == [10, 20]


def save_pictures(folder, run: str, epochs):
    phase = RunFolder(folder / run).phase(1)
    phase.picture(0).parent.mkdir(exist_ok=True)
    for epoch in epochs:
        Image.new("L", (4, 4), 40 * epoch).save(phase.picture(epoch))


@pytest.mark.parametrize("epochs", [(1, 2, 3), (0, 2), (3, 5), (1,)])
def test_each_position_of_the_epoch_slider_is_another_picture(tmp_path, epochs):
    "A run saves from epoch 1 on: positions 0 and 1 of a slider of numbers were the same."
    log(tmp_path, "a", 5)
    save_pictures(tmp_path, "a", epochs)
    training = TrainingExplorer(tmp_path)
    slider, shown = training.controls["epoch"], []
    assert slider.options == epochs and slider.disabled == (len(epochs) == 1)
    for epoch in epochs:
        slider.value = epoch
        shown.append(training.pictures.value)
        assert f"predictions of epoch {epoch}" in training.message.value
    assert len(set(shown)) == len(epochs)


def test_epochs_of_several_runs_and_of_one_that_goes_on(tmp_path):
    for run, epochs in (("a", (1, 3)), ("b", (2,)), ("c", ())):
        log(tmp_path, run, 3)
        save_pictures(tmp_path, run, epochs)
    training = TrainingExplorer(tmp_path)
    training.controls["runs"].value = list(training.seen)
    assert training.controls["epoch"].options == (1, 2, 3)
    training.controls["epoch"].value = 2
    said = training.message.value
    assert "a/phase1: predictions of epoch 1" in said and "b/phase1: predictions of epoch 2" in said
    assert "c/phase1: no predictions" in said
    save_pictures(tmp_path, "a", (4,))
    training.controls["refresh"].click()
    assert training.controls["epoch"].options == (1, 2, 3, 4) and training["epoch"] == 2


def test_training_follows_a_run_and_stops(tmp_path):
    log(tmp_path, "live", 1)
    training = TrainingExplorer(tmp_path, seconds=0.02)

    def length():
        return len(training.figure.data[0].x)

    async def until(condition):
        for _ in range(500):
            if condition():
                return True
            await asyncio.sleep(0.01)

    async def watch():
        training.controls["follow"].value = True
        task = training.task
        log(tmp_path, "live", 4)
        assert await until(lambda: length() == 4)
        training.controls["follow"].value = False
        assert await until(task.cancelled) and training.task is None
        log(tmp_path, "live", 6)
        await asyncio.sleep(0.1)
        assert length() == 4

    asyncio.run(watch())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    views, kept = warped_sample_sequences(2, (120, 160)), PredictionCache(folder / "predictions")
    protocols, path = [R1, get_protocol("R1:rounded")], folder / "metrics.parquet"
    return (
        evaluate_detectors(["harris"], protocols, {"sequences": views}, path, cache=kept),
        views,
        kept,
    )


def test_results_count_as_the_protocol_does(measured):
    rows, views, kept = measured
    results = ResultsExplorer(rows, views, kept)
    for key in (("R1", views.name, "harris"), ("R1:rounded", views.name, "harris")):
        results.controls["measured"].value = key
        for name, pair in results.controls["pair"].options[::4]:
            results.controls["pair"].value = pair
            row = results.rows.loc[pair]
            counts = [len(t.x) for t in results.figure.data]
            assert (
                sum(counts[::2]) / sum(counts) == pytest.approx(row["repeatability@3"])
                and sum(counts) == row["n1"] + row["n2"]
            )
            assert (
                results.message.value.startswith(name)
                and "measured with other" not in results.message.value
            )


def test_results_order_epsilon_and_doubts(measured):
    rows, views, kept = measured
    results = ResultsExplorer(rows.assign(version="another"), views, kept)
    assert "measured with other detector" in results.message.value
    results.controls["order"].value = "worst first"
    assert (
        results.rows.loc[results["pair"], "repeatability@3"]
        == results.part["repeatability@3"].min()
    )
    few = len(results.figure.data[0].x)
    results.controls["epsilon"].value = 10.0
    assert len(results.figure.data[0].x) > few


def test_results_of_other_sequences_or_of_no_pairs(measured):
    rows, views, _ = measured
    assert (
        "these pairs are of elsewhere"
        in ResultsExplorer(rows.assign(set="elsewhere"), views).message.value
    )
    with pytest.raises(ValueError, match="no rows of pairs"):
        ResultsExplorer(rows.assign(protocol="S1"), views)


def test_a_click_on_a_row_shows_its_pair(measured):
    rows, views, kept = measured
    results = ResultsExplorer(rows, views, kept)
    results.controls["order"].value = "worst first"
    names = [name for name, _ in results.controls["pair"].options]
    rows = re.findall(r"<tr>\s*<td>(.*?)</td>\s*<td>(.*?)</td>", results.table.html)
    assert list(map(" ".join, rows)) == names
    for k in (3, 0):
        results.table.row = k  # as the page sets it
        assert results.controls["pair"].index == k and results.message.value.startswith(names[k])
    results.controls["pair"].index = 4
    assert results.table.row == 4


def point_traces(explorer):
    return [trace for trace in explorer.figure.data if trace.mode == "markers" and len(trace.x)]


def test_every_point_tells_place_score_and_rank(measured, heatmaps):
    rows, views, kept = measured
    images = sample_images(limit=1)
    aliked = make_detector("aliked", Selection(max_keypoints=30))
    explorers = [heatmaps, WarpExplorer(images, aliked, SIZE), ResultsExplorer(rows, views, kept)]
    explorers[1].controls["rotation"].value = 10
    explorers[1].controls["matches"].value = True
    (lines,) = explorers[1].extra["matches"].children
    traces = [trace for explorer in explorers for trace in point_traces(explorer)]
    assert len(traces) >= 2 + 2 + 2
    for trace in [*traces, *(line for line in lines.data if len(line.x))]:
        words = re.sub("<.*?>", " ", trace.hovertemplate)
        assert all(re.search(rf"\b{word} %", words) for word in ("x", "y", "score", "rank")), words
        places = [int(k) for k in re.findall(r"customdata\[(\d)\]", trace.hovertemplate)]
        assert (
            trace.customdata.shape[1] == max(places) + 1 and np.isfinite(trace.customdata[0]).all()
        )


def test_a_warped_point_keeps_its_score_and_rank():
    harris = make_detector("harris", Selection(max_keypoints=50))
    warps = WarpExplorer(sample_images(limit=1), harris, SIZE)
    warps.controls["rotation"].value = 60
    first, second = (trace.customdata for trace in warps.figure.data[:2])
    ranks = second[:, 1].astype(int)
    assert 0 < len(second) < len(first) and (second == first[ranks - 1]).all()
    moved = np.c_[drawn(warps, 0), np.ones(len(first))] @ warps.H().numpy().T
    assert np.allclose((moved[:, :2] / moved[:, 2:])[ranks - 1], drawn(warps, 1), atol=1e-3)


def test_menus_offer_every_detector_of_the_registry(student):
    images, harris = sample_images(limit=1), make_detector("harris", Selection(max_keypoints=20))
    heatmaps = HeatmapExplorer(images, [harris], SIZE)
    masks, warps = (kind(images, harris, SIZE, student) for kind in (MaskExplorer, WarpExplorer))
    for explorer, name in ((heatmaps, "detector0"), (masks, "teacher"), (warps, "detector")):
        assert set(explorer.controls[name].options) == set(DETECTORS.names())
        explorer.controls[name].value = "spfpn-s"
        assert "Error" not in explorer.message.value and "redrawn" in explorer.message.value
    assert masks.keypoints.scores[0] < 1 and len(masks.xy) == len(warps.xy) == 20
    for explorer in (masks, warps):
        options = explorer.controls["student"].options
        assert options[0] == "untrained" and {"spfpn-s", "spfpn-l"} <= set(options)
        before = explorer.logits
        explorer.controls["student"].value = "spfpn-l"
        assert not torch.equal(explorer.logits, before)


def test_a_detector_without_weights_is_a_message(monkeypatch):
    explorer = HeatmapExplorer(sample_images(limit=1), [make_detector("harris")], SIZE)

    def missing(name, selection):
        raise OSError(f"{name}: no weights")

    monkeypatch.setattr("spfpn.show.widgets.make_detector", missing)
    explorer.controls["detector0"].value = "superpoint"
    assert "superpoint: no weights" in explorer.message.value and explorer.sign.value == ""
    explorer.controls["detector0"].value = "harris"
    assert "harris: " in explorer.message.value and "no weights" not in explorer.message.value


def test_masks_begin_with_the_sigma_of_a_training():
    masks = MaskExplorer(sample_images(limit=1), Fixed(), SIZE)
    assert masks["sigma"] == Config.load().phase1.sigma == 0.7
    assert torch.equal(masks.mask, blob_mask(Fixed.xy, SIZE, 0.7))
    assert WarpExplorer(sample_images(limit=1), Fixed(), SIZE).sigma == Config.load().phase2.sigma
    assert MaskExplorer(sample_images(limit=1), Fixed(), SIZE, sigma=1.5)["sigma"] == 1.5


@pytest.mark.parametrize("fails", [False, True])
def test_busy_is_said_before_the_work_and_never_after(heatmaps, monkeypatch, fails):
    signs, drawn_by = [], HeatmapExplorer.draw

    def draw(explorer, changed):
        signs.append(explorer.sign.value)
        if fails:
            raise RuntimeError("out of memory")
        return drawn_by(explorer, changed)

    monkeypatch.setattr(HeatmapExplorer, "draw", draw)
    changes = []
    heatmaps.sign.observe(lambda change: changes.append(bool(change["new"])), "value")
    heatmaps.controls["points"].value = 30
    assert "computing" in signs[0] and 'role="status"' in signs[0]
    assert changes == [True, False] and ("out of memory" in heatmaps.message.value) == fails


@pytest.fixture
def pairs():
    return PairExplorer(sample_images(limit=3), size=(240, 320))


def lines(explorer, trace: int) -> np.ndarray:
    "The ends [K, 2, 2] of the lines of a trace; the second ones in the second photograph."
    ends = drawn(explorer, trace).reshape(-1, 3, 2)[:, :2].copy()
    ends[:, 1, 0] -= explorer.offset
    return ends


def test_blue_lines_agree_with_the_homography_and_red_ones_do_not(pairs):
    for k, side in enumerate("AB"):
        H = pairs.estimates[side].model.numpy()
        for trace, agree in ((2 * k, True), (2 * k + 1, False)):
            ends = lines(pairs, trace)
            x = np.pad(ends[:, 0], ((0, 0), (0, 1)), constant_values=1) @ H.T
            errors = np.linalg.norm(x[:, :2] / x[:, 2:] - ends[:, 1], axis=1)
            assert ((errors <= 3) == agree).all()
    blue = len(lines(pairs, 0))
    pairs.controls["inlier"].value = 0.5
    assert 0 < len(lines(pairs, 0)) < blue


def test_each_control_of_a_pair_does_what_it_says(pairs):
    def count(side: str) -> int:
        return len(pairs.matches[side])

    with_all, by_lightglue = count("A"), pairs.message.value
    pairs.controls["score"].value = 0.9
    assert count("A") < with_all and pairs.matches["A"].scores.min() >= 0.9
    pairs.controls["score"].value = 0.0
    assert count("A") == with_all
    pairs.controls["matcher"].value = "mnn"
    assert pairs.message.value != by_lightglue and "A: spfpn-s, mnn" in (
        pairs.figure.layout.annotations[0].text
    )
    every = count("A"), count("B")
    pairs.controls["ratio"].value = 0.8
    assert count("A") < every[0] and count("B") < every[1]
    pairs.controls["points"].value = 50
    assert all(len(pairs.matches[side].image0.keypoints) == 50 for side in "AB")
    pairs.controls["B"].value = "aliked"
    assert "B: aliked, mnn" in pairs.figure.layout.annotations[1].text
    pairs.controls["matcher"].value = "lightglue"
    pairs.controls["B"].value = "sift"
    assert "no weights for &#x27;sift&#x27;" in pairs.message.value


def test_the_overlay_has_the_opacity_of_the_slider(pairs):
    def shown() -> np.ndarray:
        source = pairs.overlays.layout.images[0].source.split(",")[1]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("L"), float)

    pairs.controls["opacity"].value = 0.0
    second = pairs.other.mean(0).numpy() * 255
    assert abs(shown() - second).mean() < 3
    pairs.controls["opacity"].value = 1.0
    laid = shown()
    seen = laid > 0
    assert np.corrcoef(laid[seen], second[seen])[0, 1] > 0.9  # the first one, in its place
    assert abs(laid - second)[seen].mean() > 10  # and in more light


def test_a_new_folder_is_offered_in_both_menus(pairs, tmp_path):
    for name, value in (("one.png", 50), ("two.png", 90)):
        Image.new("RGB", (90, 60), (value, 10, 10)).save(tmp_path / name)
    pairs.controls["source"].value = str(tmp_path)
    offered = [label for label, _ in pairs.controls["second"].options]
    assert offered == ["the first one, warped", "one.png", "two.png"]
    pairs.controls["second"].value = tmp_path / "two.png"
    assert "0 matches, 0 inliers" in pairs.message.value
    (tmp_path / "two.png").write_bytes(b"gone")
    pairs.controls["second"].value = ""
    pairs.controls["second"].value = tmp_path / "two.png"
    assert "two.png" in pairs.message.value and "alert" in pairs.message.value
