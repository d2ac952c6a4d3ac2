"Phase 3: the teacher's descriptors, the head that learns them, and what a user does with them."

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spfpn.apps.cli import app
from spfpn.core.config import Config, ConfigError
from spfpn.core.registry import DETECTORS
from spfpn.core.runs import TrainingFolder
from spfpn.data.images import sample_images
from spfpn.features.factory import LocalFeature, load, make_detector
from spfpn.features.keypoints import Keypoints, Selection
from spfpn.features.student import DescribingStudent
from spfpn.labels.descriptions import make_descriptions, row_descriptors
from spfpn.labels.store import row_points
from spfpn.matching.matchers import make_matcher, match_mnn
from spfpn.models.spfpn import SPFPN, load_checkpoint, save_checkpoint
from spfpn.train import loop
from spfpn.train.description import DescriptionTask
from spfpn.train.phases import train_phase3

SIZES = [(1, 1), (33, 50), (64, 96), (101, 67)]


def student(**descriptor) -> SPFPN:
    torch.manual_seed(0)
    options = dict(dim=16) | descriptor
    return SPFPN(channels=8, levels=2, descriptor=options).eval()


@pytest.fixture(scope="module")
def tiny() -> Config:
    settings = {"data.limit": 4, "phase3.points": 30, "phase3.random_points": 10}
    return Config.load("tiny", settings | {"phase3.epochs": 2, "data.val_fraction": 0.3})


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    torch.manual_seed(0)
    model = SPFPN(channels=8, levels=2).eval()
    return save_checkpoint(model, tmp_path_factory.mktemp("start") / "detector.safetensors")


@pytest.fixture(scope="module")
def store(tiny, start, tmp_path_factory):
    return make_descriptions(tiny, tmp_path_factory.mktemp("store"), start)


def test_a_store_says_what_the_teacher_says(tiny, store):
    images, teacher = sample_images(), make_detector("aliked")
    for i in range(len(store)):
        row = store.row(i)
        image = images.load(images.index()[row["id"]], tiny.data.size)[0]
        points = Keypoints(row_points(row), torch.zeros(len(row["x"])))
        expected = teacher.describe(image[None], [points])[0].descriptors
        assert torch.allclose(row_descriptors(row), expected, atol=2e-3)
        assert len(points) <= 40 and row["score"][-10:] == [0.0] * 10  # the random ones come last


def test_a_store_of_another_teacher_is_refused(tiny, store, start):
    other = tiny.replace({"phase3.random_points": 5})
    with pytest.raises(ValueError, match="random_points"):
        make_descriptions(other, store.folder, start)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("head", ["shuffle", "bicubic"])
def test_images_of_any_size_and_points_anywhere_are_described(size, head):
    torch.manual_seed(0)
    model = SPFPN(head=head, channels=8, levels=2, descriptor=dict(dim=16)).eval()
    detector = DescribingStudent(model, Selection(50, 2))
    images = torch.rand(2, 1, *size)
    anywhere = Keypoints(torch.tensor([[0.0, 0.0], [size[1] - 1, size[0] - 1]]), torch.zeros(2))
    found = detector.describe(images, [anywhere, anywhere.select(torch.tensor([], dtype=int))])
    assert [tuple(k.descriptors.shape) for k in found] == [(2, 16), (0, 16)]
    assert torch.allclose(found[0].descriptors.norm(dim=1), torch.ones(2), atol=1e-5)


def test_one_pass_gives_what_two_give():
    detector = DescribingStudent(student(), Selection(50, 2))
    images = torch.stack([sample_images().load(i, (96, 128))[0] for i in (0, 1)])
    found = detector.detect(images)
    for one, two in zip(detector.detect_and_describe(images), detector.describe(images, found)):
        assert len(one) > 5 and torch.equal(one.xy, two.xy)
        assert torch.allclose(one.descriptors, two.descriptors, atol=1e-6)


def test_a_student_without_a_head_says_how_to_get_one(start):
    detector = make_detector(start)
    assert not hasattr(detector, "describe")
    with pytest.raises(ValueError, match=r"does not describe.*aliked"):
        LocalFeature(detector).detect(np.zeros((40, 40)), describe=True)
    with pytest.raises(ValueError, match="spfpn train phase3"):
        DescribingStudent(load_checkpoint(start))


def test_a_user_describes_arrays_batches_and_files_alike(tmp_path):
    path = save_checkpoint(student(teacher="aliked"), tmp_path / "s.safetensors")
    assert DETECTORS.tags(str(path))["extractor"]
    feature = LocalFeature(make_detector(path))
    images = sample_images()
    image = images.load(0, (96, 128))[0]
    found = feature.detect(image, describe=True)
    assert found.descriptors.shape == (len(found), 16)
    again = feature.describe(image, found.xy.numpy())
    assert torch.allclose(again.descriptors, found.descriptors, atol=1e-6)
    both = feature.describe(torch.stack((image, image)), [found, found.xy])
    assert torch.allclose(both[1].descriptors, found.descriptors, atol=1e-5)
    with pytest.raises(ValueError, match="points of 1 images for 2 images"):
        feature.describe(torch.stack((image, image)), [found])


def test_training_leaves_the_detector_as_it_was(tiny, store, start, tmp_path):
    best = train_phase3(tiny, store.folder, start, tmp_path, progress=False)
    before, after = load_checkpoint(start), load_checkpoint(best)
    image = torch.rand(1, 1, 64, 96)
    with torch.no_grad():
        assert torch.equal(before.heatmap(image), after.heatmap(image))
    old = before.state_dict()
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in old.items())
    assert after.descriptor.teacher == "aliked" and after.descriptor.dim == 128
    trained = train_phase3(tiny, store.folder, best, tmp_path / "on", progress=False)
    assert load_checkpoint(trained).config == after.config


def test_an_interrupted_training_goes_on_exactly_there(tiny, store, start, tmp_path, monkeypatch):
    whole = train_phase3(tiny, store.folder, start, tmp_path / "whole", progress=False)
    monkeypatch.setattr(loop, "SAVE_INTERVAL", -1)
    step, calls = loop.train_step, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train_phase3(tiny, store.folder, start, tmp_path / "cut", progress=False)
    monkeypatch.setattr(loop, "train_step", step)
    train_phase3(tiny, store.folder, start, tmp_path / "cut", progress=False)
    parts = (TrainingFolder(tmp_path / name).last for name in ("whole", "cut"))
    one, two = (load_checkpoint(path).state_dict() for path in parts)
    assert whole.is_file() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_teachers_own_descriptors_cost_nothing(tiny, store):
    "A student that says what the teacher says has no loss; one of random vectors has."
    from spfpn.data.images import open_images
    from spfpn.train.tasks import KeypointDataset

    losses = {"phase3.losses": "cosine,similarity"}
    quiet = tiny.replace({"augment.photometric": 0.0} | losses)
    task = DescriptionTask(KeypointDataset(open_images("samples", 4), store), quiet)
    rows = [task.examples.rows[i] for i in task.examples.train]
    batch = task.batch(rows, torch.Generator().manual_seed(0))
    model = student(dim=128)
    taught = (targets[seen] for targets, seen in zip(batch["targets"], batch["visible"]))
    model.descriptor.sample = lambda dense, i, xy: next(taught)
    terms = task.loss(model, batch)
    assert terms["loss"] < 1e-3
    del model.descriptor.sample
    assert task.loss(model, batch)["cosine"] > 0.5


def test_points_out_of_view_do_not_count(tiny, store):
    from spfpn.data.images import open_images
    from spfpn.train.tasks import KeypointDataset

    task = DescriptionTask(KeypointDataset(open_images("samples", 4), store), tiny)
    rows = [task.examples.rows[i] for i in task.examples.train]
    batch = task.batch(rows, torch.Generator().manual_seed(0))
    model = student(dim=128)
    with torch.no_grad():
        before = task.loss(model, batch)["loss"]
        hidden = ~batch["visible"]
        assert hidden.any()
        batch["targets"][hidden] = torch.nn.functional.normalize(torch.rand(128), dim=0)
        assert torch.equal(task.loss(model, batch)["loss"], before)


@pytest.mark.parametrize("losses", ["cosine,dual_softmax", "similarity,contrastive"])
def test_a_view_that_shows_no_point_is_left_out(tiny, store, losses):
    "Its mean over nothing was not a number, and ended a training after an hour."
    from spfpn.data.images import open_images
    from spfpn.train.tasks import KeypointDataset

    chosen = tiny.replace({"phase3.losses": losses})
    task = DescriptionTask(KeypointDataset(open_images("samples", 4), store), chosen)
    rows = [task.examples.rows[i] for i in task.examples.train][:2]
    batch, model = task.batch(rows, torch.Generator().manual_seed(0)), student(dim=128)
    alone = task.loss(model, {name: values[1:] for name, values in batch.items()})
    batch["visible"][0] = False
    terms = task.loss(model, batch)
    assert all(torch.allclose(terms[name], alone[name], atol=1e-5) for name in terms)
    batch["visible"][0, 0] = batch["visible"][1] = False
    nothing = task.loss(model, batch)["loss"]
    nothing.backward()
    assert nothing == 0


def test_settings_that_do_not_fit_are_refused(tiny):
    with pytest.raises(ConfigError, match="a weight for each of phase3.losses=cosine,dual_softmax"):
        tiny.replace({"phase3.loss_weights": "1"}).check()
    with pytest.raises(ConfigError, match="triplet"):
        tiny.replace({"phase3.losses": "triplet"}).check()
    with pytest.raises(ConfigError, match="harris"):
        tiny.replace({"phase3.teacher": "harris"}).check()


def test_students_without_a_teacher_speak_a_language_of_their_own(tiny, store, start, tmp_path):
    alone = tiny.replace({"phase3.losses": "contrastive", "phase3.loss_weights": "1"})
    best = train_phase3(alone, store.folder, start, tmp_path, progress=False)
    detector = make_detector(best)
    assert detector.head.teacher == "" and detector.descriptor_name == detector.name
    with pytest.raises(ValueError, match="no weights"):
        make_matcher("lightglue", detector.descriptor_name)


def test_short_descriptors_keep_cosines_of_what_they_were_fitted_to():
    head = student(dim=128).descriptor
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(64, 128, generator=generator)
    vectors = torch.nn.functional.normalize(torch.randn(500, 64, generator=generator) @ basis)
    head.fit_compact(vectors)
    short = head.shorten(vectors)
    assert short.shape == (500, 64)
    assert torch.allclose(short @ short.T, vectors @ vectors.T, atol=1e-4)


def test_shorter_descriptors_keep_the_keypoints_and_match_nearly_as_well():
    feature = load(max_keypoints=300, nms_radius=2)
    image = sample_images(("coffee.png",)).load(0, (240, 320))[0]
    ends = [feature.detect(view, describe=True) for view in (image, 0.5 * image)]
    short = [feature.shorten(keypoints) for keypoints in ends]
    for whole, half in zip(ends, short):
        assert torch.equal(whole.xy, half.xy) and half.descriptors.shape == (len(whole), 64)
        assert torch.allclose(half.descriptors.norm(dim=1), torch.ones(len(whole)), atol=1e-5)
    counts = [len(match_mnn(a.descriptors, b.descriptors).indices) for a, b in (ends, short)]
    assert counts[1] > 0.9 * counts[0] > 100
    with pytest.raises(ValueError, match="describe=True"):
        feature.shorten(feature.detect(image))
    with pytest.raises(ValueError, match="a student has"):
        load("harris").shorten(ends[0])


def test_the_example_measures_short_descriptors():
    file = Path(__file__).resolve().parents[1] / "examples" / "short_descriptors.py"
    detector = make_detector(f"{file}:Short", Selection(50))
    (found,) = detector.detect_and_describe(torch.rand(1, 1, 64, 96))
    assert found.descriptors.shape == (len(found), 64) and len(found) > 10


def test_the_command_writes_descriptors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo = sample_images(("coffee.png",)).paths[0]
    options = ["--describe", "--max-keypoints", "50", "--resize", "200"]
    assert CliRunner().invoke(app, ["detect", str(photo), *options]).exit_code == 0
    arrays = np.load(f"{photo.name}.npz")
    assert arrays["descriptors"].shape == (50, 128)
    expected = load(max_keypoints=50).detect(photo, resize=200, describe=True)
    assert np.allclose(arrays["descriptors"], expected.descriptors, atol=1e-5)
    refused = CliRunner().invoke(app, ["detect", str(photo), "--detector", "fast", "--describe"])
    assert refused.exit_code == 2 and "does not describe" in refused.output
