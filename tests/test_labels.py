"Rows of a label store that are read one at a time, and the examples made of them."

import random
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from spfpn.data.images import folder_images
from spfpn.models.spfpn import SPFPN, save_checkpoint

pass
from spfpn.core.settings import Settings
from spfpn.labels.labeling import make_labels
from spfpn.labels.pairs import make_pairs
from spfpn.labels.store import LabelError, LabelStore
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
    monkeypatch.setattr("spfpn.labels.store.CACHED_ROW_GROUPS", 10)
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


def test_examples_are_in_the_order_of_their_images_whoever_labelled_them(tmp_path):
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
    options = dict(teacher="spfpn-s", height=32, width=48, workers=0)
    store = make_labels(Settings(images=str(one), **options), tmp_path / "labels")
    before = store.frame()
    with pytest.raises(LabelError, match="witness"):
        make_labels(Settings(images=str(two), **options), tmp_path / "labels")
    photographs(one, {"00.png": 90})  # a new one, before the others
    moved = one.rename(tmp_path / "photos")
    assert sorted(make_labels(Settings(images=str(moved), **options), tmp_path / "labels").ids) == [
        "0.png",
        "00.png",
        "1.png",
    ]
    assert len(before) == 2


def test_photographs_of_any_shape_are_learned_from_and_what_lies_beside_them_does_not_count(
    tmp_path,
):
    folder = photographs(tmp_path / "photos", {f"wide{i}.png": 50 for i in range(3)}, (96, 48))
    photographs(folder, {f"high{i}.png": 50 for i in range(3)}, (48, 96))
    settings = Settings(
        images=str(folder),
        resize="fit",
        height=64,
        width=96,
        teacher="spfpn-s",
        val_share=0.5,
        batch=2,
        phase1_epochs=1,
        fpn_channels=8,
        pretrained=False,
        levels=2,
        workers=0,
    )
    make_labels(settings, tmp_path / "labels")
    train_phase1(settings, tmp_path / "labels", tmp_path / "phase1", progress=False)
    examples = KeypointDataset(folder_images(folder), LabelStore(tmp_path / "labels"))
    high = next(r for r in examples.rows if r["id"] == "high0.png")
    assert (high["height"], high["width"]) == (64, 32) and examples.image(high).shape == (1, 64, 96)
    assert torch.equal(
        examples.valid([high], torch.eye(3)[None], (64, 96), 0)[0, 0],
        torch.arange(96).expand(64, 96) < 32,
    )
    make_pairs(settings.replace(teacher="aliked", matcher="nearest"), tmp_path / "pairs")
    high = next(
        r
        for r in LabelStore(tmp_path / "pairs").frame().to_dict("records")
        if r["id"] == "high0.png"
    )
    one, two = (
        kind(examples, settings).batch([high], torch.Generator().manual_seed(0))
        for kind in (SupervisedTask, ConsistencyTask)
    )
    shown = examples.valid([high], one["H"], (64, 96))
    assert torch.equal(one["valid"], shown) and not shown.all()
    assert two["valid2"].sum() < two["valid2"].numel() / 2, "a third of the frame is the photograph"
    train_phase2(
        settings.replace(phase2_epochs=1),
        tmp_path / "pairs",
        tmp_path / "phase1" / "best.safetensors",
        tmp_path / "phase2",
        progress=False,
    )


def test_where_the_matcher_saw_nothing_no_view_says_that_there_is_no_keypoint(monkeypatch):
    monkeypatch.setattr(
        "spfpn.train.tasks.augment_photometric", lambda images, generator, strength: images
    )
    h, w, moved = (
        96,
        128,
        40,
    )  # the warp shows the photograph 40 px further left: its first 40 columns are outside of the warp's frame
    columns = (
        torch.arange(w).expand(1, h, w) / w
    )  # a photograph that says at each pixel which column it is
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
        b = ConsistencyTask(examples, Settings()).batch([row], torch.Generator().manual_seed(seed))
        seen += [b["images"][b["valid"]] * w, b["images2"][b["valid2"]] * w]
    assert torch.cat(seen).min() > moved and torch.cat(seen).max() < w
    assert all(len(view) > 500 for view in seen[:10]), "what both saw counts"


def test_a_training_goes_on_from_the_checkpoint_it_began_with(tmp_path):
    settings = Settings(
        limit=4, height=64, width=96, teacher="spfpn-s", batch=2, phase1_epochs=1, workers=0
    )
    make_labels(settings, tmp_path / "labels")
    starts = [
        save_checkpoint(SPFPN(channels=8, levels=2), tmp_path / f"{i}.safetensors")
        for i in range(2)
    ]
    for start in (starts[0], starts[0]):
        train_phase1(
            settings.replace(phase1_start=start),
            tmp_path / "labels",
            tmp_path / "phase1",
            progress=False,
        )
    starts[1].replace(starts[0])
    with pytest.raises(TrainingError, match="begun_with"):
        train_phase1(
            settings.replace(phase1_start=starts[0]),
            tmp_path / "labels",
            tmp_path / "phase1",
            progress=False,
        )
