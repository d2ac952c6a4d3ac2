"Rows of a label store that are read one at a time, and the examples made of them."
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from spfpn import labels
from spfpn.images import folder_images
from spfpn.labels import LabelError, LabelStore
from spfpn.training import Examples


def row(i: int, points: int = 250) -> dict:
    x = np.random.default_rng(i).random(points, dtype=np.float32)
    return dict(id=f"{i}.png", height=32, width=48, x=x, y=x + 1, score=x + 2, teacher="t")

def filled(folder, numbers, shard: int = 64, **options) -> LabelStore:
    for k in range(0, len(numbers), shard): LabelStore(folder).append([row(i, **options) for i in numbers[k:k + shard]], dict(height=32, width=48, resize="cover"))
    return LabelStore(folder)


def test_any_row_is_read_and_memory_holds_a_few_groups_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "GROUPS_KEPT", 10)
    store = filled(tmp_path, range(1000))
    size, before, most = sum(s.stat().st_size for s in store.shards), pa.total_allocated_bytes(), 0
    for i in random.Random(0).sample(range(1000), 1000):
        found = store.row(i)
        most = max(most, pa.total_allocated_bytes() - before)
        assert found["id"] == f"{i}.png" and found["y"] == (np.array(row(i)["y"])).tolist()
    assert len(store) == 1000 and most < size / 4
    with pytest.raises(IndexError, match="row 1000 of 1000"): store.row(1000)


def test_shards_with_groups_of_another_size_are_read_too(tmp_path):
    store = filled(tmp_path, range(70))
    whole = pq.read_table(store.shards[0])
    pq.write_table(whole, store.shards[0])   # one group
    assert [LabelStore(tmp_path).row(i)["id"] for i in range(70)] == [f"{i}.png" for i in range(70)]


def test_a_shard_that_is_not_whole_is_named_when_a_row_is_wanted(tmp_path):
    store = filled(tmp_path, range(128))
    store.shards[1].write_bytes(store.shards[1].read_bytes()[:-50])
    with pytest.raises(LabelError, match="part-00001.parquet: not a whole shard"): store.row(0)


def test_a_summary_has_every_row_and_no_points(tmp_path):
    store = filled(tmp_path, range(5), shard=2, points=7)
    assert store.summary().to_dict("list") == dict(id=[f"{i}.png" for i in range(5)], height=[32] * 5, width=[48] * 5, teacher=["t"] * 5, points=[7] * 5)


def test_examples_are_in_the_order_of_their_images_whoever_labelled_them(tmp_path):
    (tmp_path/"in").mkdir()
    for i in range(6): Image.new("L", (48, 32), 40 * i).save(tmp_path/"in"/f"{i}.png")
    images = folder_images(tmp_path/"in")
    shuffled, ordered = (Examples(images, filled(tmp_path/name, order, shard=2, points=3)) for name, order in (("a", [4, 1, 99, 0, 5, 3, 2]), ("b", range(6))))
    for examples in (shuffled, ordered):   # 99 is no image
        assert [r["id"] for r in examples.rows] == [f"{i}.png" for i in range(6)] and [r["id"] for r in examples.rows[1:3]] == ["1.png", "2.png"]
        assert torch.equal(examples.image(examples.rows[5]), torch.full((1, 32, 48), 200 / 255))
    assert (shuffled.val == ordered.val).all() and len(shuffled.val) == 1 and sorted([*shuffled.val, *shuffled.train]) == list(range(6))
