"Rows of a label store that are read one at a time, and the examples made of them."

import random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from spfpn.core.config import Config
from spfpn.core.registry import CONSISTENCY_LOSSES
from spfpn.data.images import folder_images
from spfpn.labels.labeling import make_labels
from spfpn.labels.pairs import make_pairs
from spfpn.labels.store import LabelError, LabelStore
from spfpn.models.spfpn import SPFPN, save_checkpoint
from spfpn.train.loop import TrainingError
from spfpn.train.phases import train_phase1, train_phase2
from spfpn.train.tasks import ConsistencyTask, KeypointDataset, SupervisedTask


def row(i: int, points: int = 250) -> dict:
    x = np.random.default_rng(i).random(points, dtype=np.float32)
    return dict(id=f"{i}.png", height=32, width=48, x=x, y=x + 1, score=x + 2, teacher="t")


def filled(folder, numbers, shard: int = 64, **options) -> LabelStore:
    for k in range(0, len(numbers), shard):
        LabelStore(folder).append(
            [row(i, **options) for i in numbers[k : k + shard]],
            dict(height=32, width=48, resize="cover"),
        )
    return LabelStore(folder)


def test_any_row_is_read_and_memory_holds_a_few_groups_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("spfpn.labels.store._CACHED_BYTES", 10_000)
    store = filled(tmp_path, range(1000))
    size, before, most = sum(s.stat().st_size for s in store.shards), pa.total_allocated_bytes(), 0
    for i in random.Random(0).sample(range(1000), 1000):
        found = store.row(i)
        most = max(most, pa.total_allocated_bytes() - before)
        assert found["id"] == f"{i}.png" and found["y"] == (np.array(row(i)["y"])).tolist()
    assert len(store) == 1000 and most < size / 4
    with pytest.raises(IndexError, match="row 1000 of 1000"):
        store.row(1000)


def test_shards_with_groups_of_another_size_are_read_too(tmp_path):
    store = filled(tmp_path, range(70))
    whole = pq.read_table(store.shards[0])
    pq.write_table(whole, store.shards[0])  # one group
    assert [LabelStore(tmp_path).row(i)["id"] for i in range(70)] == [f"{i}.png" for i in range(70)]


def test_a_shard_that_is_not_whole_is_named_when_a_row_is_wanted(tmp_path):
    store = filled(tmp_path, range(128))
    store.shards[1].write_bytes(store.shards[1].read_bytes()[:-50])
    with pytest.raises(LabelError, match="part-00001.parquet: not a whole shard"):
        store.row(0)


def test_a_summary_has_every_row_and_no_points(tmp_path):
    store = filled(tmp_path, range(5), shard=2, points=7)
    assert store.summary().to_dict("list") == dict(
        id=[f"{i}.png" for i in range(5)],
        height=[32] * 5,
        width=[48] * 5,
        teacher=["t"] * 5,
        points=[7] * 5,
    )


def test_examples_are_in_the_order_of_their_images_whoever_labeled_them(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(6):
        Image.new("L", (48, 32), 40 * i).save(tmp_path / "in" / f"{i}.png")
    images = folder_images(tmp_path / "in")
    shuffled, ordered = (
        KeypointDataset(images, filled(tmp_path / name, order, shard=2, points=3))
        for name, order in (("a", [4, 1, 99, 0, 5, 3, 2]), ("b", range(6)))
    )
    for examples in (shuffled, ordered):  # 99 is no image
        assert [r["id"] for r in examples.rows] == [f"{i}.png" for i in range(6)] and [
            r["id"] for r in examples.rows[1:3]
        ] == ["1.png", "2.png"]
        assert torch.equal(examples.image(examples.rows[5]), torch.full((1, 32, 48), 200 / 255))
    assert (
        (shuffled.val == ordered.val).all()
        and len(shuffled.val) == 1
        and sorted([*shuffled.val, *shuffled.train]) == list(range(6))
    )


def photographs(folder, shades: dict[str, int], size=(48, 32)):
    for name, shade in shades.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise(size, shade).save(folder / name)
    return folder


def test_another_folder_of_the_same_name_gets_no_labels_of_the_first(tmp_path):
    one, two = (
        photographs(tmp_path / part / "photos", {"0.png": shade, "1.png": shade})
        for part, shade in (("a", 30), ("b", 60))
    )

    def label(photos) -> LabelStore:
        options = {"labels.teacher": "spfpn-s", "data.height": 32, "data.width": 48}
        config = Config.from_flat({"data.images": photos, "run.workers": 0, **options})
        return make_labels(config, tmp_path / "labels")

    before = label(one).frame()
    with pytest.raises(LabelError, match="witness"):
        label(two)
    photographs(one, {"00.png": 90})  # a new one, before the others
    moved = one.rename(tmp_path / "photos")
    assert sorted(label(moved).ids) == ["0.png", "00.png", "1.png"]
    assert len(before) == 2


def test_photographs_of_any_shape_are_learned_from_and_what_lies_beside_them_does_not_count(
    tmp_path,
):
    folder = photographs(tmp_path / "photos", {f"wide{i}.png": 50 for i in range(3)}, (96, 48))
    photographs(folder, {f"high{i}.png": 50 for i in range(3)}, (48, 96))
    config = Config.from_flat(
        {
            "run.workers": 0,
            "data.images": folder,
            "data.resize": "fit",
            "data.height": 64,
            "data.width": 96,
            "data.val_fraction": 0.5,
            "labels.teacher": "spfpn-s",
            "model.fpn_channels": 8,
            "phase1.epochs": 1,
            "phase2.targets": "matched_pairs",
            "phase2.epochs": 1,
            "augment.shapes_per_view": 0,
            "train.batch_size": 2,
        }
    )
    make_labels(config, tmp_path / "labels")
    train_phase1(config, tmp_path / "labels", tmp_path / "phase1", progress=False)
    examples = KeypointDataset(folder_images(folder), LabelStore(tmp_path / "labels"))
    high = next(r for r in examples.rows if r["id"] == "high0.png")
    assert (high["height"], high["width"]) == (64, 32) and examples.image(high).shape == (1, 64, 96)
    assert torch.equal(
        examples.valid([high], torch.eye(3)[None], (64, 96), 0)[0, 0],
        torch.arange(96).expand(64, 96) < 32,
    )
    by_aliked = config.replace({"labels.teacher": "aliked", "labels.matcher": "mnn"})
    make_pairs(by_aliked, tmp_path / "pairs")
    high = next(
        r
        for r in LabelStore(tmp_path / "pairs").frame().to_dict("records")
        if r["id"] == "high0.png"
    )
    one, two = (
        kind(examples, config).batch([high], torch.Generator().manual_seed(0))
        for kind in (SupervisedTask, ConsistencyTask)
    )
    shown = examples.valid([high], one["H"], (64, 96))
    assert torch.equal(one["valid"], shown) and not shown.all()
    assert two["valid2"].sum() < two["valid2"].numel() / 2, "a third of the frame is the photograph"
    train_phase2(
        config,
        tmp_path / "pairs",
        tmp_path / "phase1" / "best.safetensors",
        tmp_path / "phase2",
        progress=False,
    )


def test_where_the_matcher_saw_nothing_no_view_says_that_there_is_no_keypoint(monkeypatch):
    monkeypatch.setattr(
        "spfpn.train.tasks.augment_photometric", lambda images, generator, strength: images
    )
    # the warp shows the photograph 40 px further left, its first 40 columns not at all
    h, w, moved = 96, 128, 40
    # a photograph that says at each pixel which column it is
    columns = torch.arange(w).expand(1, h, w) / w
    row = dict(
        id="a",
        height=h,
        width=w,
        H=[1, 0, -moved, 0, 1, 0, 0, 0, 1],
        **{k: [60.0] for k in ("x", "y", "x1", "y1")},
    )
    examples = SimpleNamespace(
        size=(h, w),
        image=lambda row: columns,
        valid=lambda *views: KeypointDataset.valid(None, *views),
    )
    seen = []
    for seed in range(20):
        b = ConsistencyTask(examples, Config()).batch([row], torch.Generator().manual_seed(seed))
        seen += [b["images"][b["valid"]] * w, b["images2"][b["valid2"]] * w]
    assert torch.cat(seen).min() > moved and torch.cat(seen).max() < w
    assert all(len(view) > 500 for view in seen[:10]), "what both saw counts"


def test_a_training_goes_on_from_the_checkpoint_it_began_with(tmp_path):
    config = Config.from_flat(
        {
            "run.workers": 0,
            "data.limit": 4,
            "data.height": 64,
            "data.width": 96,
            "labels.teacher": "spfpn-s",
            "phase1.epochs": 1,
            "augment.shapes_per_view": 0,
            "train.batch_size": 2,
        }
    )
    make_labels(config, tmp_path / "labels")
    starts = [
        save_checkpoint(SPFPN(channels=8, levels=2), tmp_path / f"{i}.safetensors")
        for i in range(2)
    ]
    begun = config.replace({"phase1.init_from": starts[0]})
    for _ in range(2):
        train_phase1(begun, tmp_path / "labels", tmp_path / "phase1", progress=False)
    starts[1].replace(starts[0])
    with pytest.raises(TrainingError, match="initialized_from"):
        train_phase1(begun, tmp_path / "labels", tmp_path / "phase1", progress=False)


def test_a_store_of_the_matcher_nearest_is_one_of_mnn(tmp_path):
    made = dict(teacher="t", matcher="nearest", seed=0)
    LabelStore(tmp_path).append([row(0)], made)
    LabelStore(tmp_path).check(made | dict(matcher="mnn"))
    with pytest.raises(LabelError, match="matcher: 'mnn', now 'lightglue'"):
        LabelStore(tmp_path).check(made | dict(matcher="lightglue"))


LOSSES = """
import torch

calls = []

def squares(logits, mask, valid):
    calls.append(logits.shape)
    return ((logits.sigmoid() - mask) * valid).square().mean()

def agree(pair):
    carried, valid = pair.carried()
    calls.append(carried.shape)
    return ((carried.sigmoid() - pair.logits_warped.sigmoid()) * valid).square().mean()

def none(*given): pass
def each(logits, mask, valid): return (logits - mask).flatten(1).mean(1)
def infinite(logits, mask, valid): return (logits.sum() * 0).log() * -1
def constant(logits, mask, valid): return mask.mean()
def broken(logits, mask, valid): return logits.nothing
"""


@pytest.fixture
def losses(tmp_path):
    (tmp_path / "mine.py").write_text(LOSSES)
    return tmp_path / "mine.py"


@pytest.mark.parametrize(
    "name, said",
    [
        ("none", "returned None, and must return a scalar tensor"),
        ("each", r"returned the shape \[2\], and must return one finite number"),
        ("infinite", "returned inf, and must return one finite number"),
        ("constant", "which no logit has a gradient of"),
        ("broken", "two maps .*failed: AttributeError: .*nothing"),
        ("square", "did you mean 'squares'?"),
    ],
)
def test_a_loss_that_cannot_train_is_named_before_a_training(name, said, losses):
    config = Config.from_flat({"phase1.loss": f"{losses}:{name}"})
    with pytest.raises(ValueError, match=rf"phase-1 loss '.*mine.py:{name}'[:,] .*{said}"):
        SupervisedTask(SimpleNamespace(size=(64, 96)), config)


def test_losses_of_ones_own_are_what_runs(losses, tmp_path):
    config = Config.from_flat(
        {
            "run.workers": 0,
            "data.limit": 4,
            "data.height": 64,
            "data.width": 96,
            "labels.teacher": "aliked",
            "labels.matcher": "mnn",
            "model.fpn_channels": 8,
            "phase1.loss": f"{losses}:squares",
            "phase1.epochs": 1,
            "phase2.targets": "matched_pairs",
            "phase2.loss": f"{losses}:agree",
            "phase2.epochs": 1,
            "augment.shapes_per_view": 0,
            "train.batch_size": 2,
        }
    )
    make_labels(config, tmp_path / "labels")
    make_pairs(config, tmp_path / "pairs")
    start = train_phase1(config, tmp_path / "labels", tmp_path / "phase1", progress=False)
    train_phase2(config, tmp_path / "pairs", start, tmp_path / "phase2", progress=False)
    log = pd.read_parquet(tmp_path / "phase2" / "log.parquet").set_index(["name", "split"]).value
    assert 0 < log["consistency", "train"] < 1
    shapes = [
        tuple(shape) for shape in CONSISTENCY_LOSSES.get(f"{losses}:agree").__globals__["calls"]
    ]
    assert shapes[0] == (2, 1, 64, 64), "tried on a tiny batch first"
    assert {(2, 1, 64, 96)} <= set(shapes[1:])
