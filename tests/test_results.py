"""Results that can be traced: HPatches' layout, kept predictions, own detectors, README's table."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from spfpn.apps.cli import app
from spfpn.data.images import validation_ids
from spfpn.data.sequences import HPATCHES_LARGE, open_sequences, warped_folder_sequences
from spfpn.evaluate.results import PUBLISHED, compare_published, read_metrics, summarize
from spfpn.geometry.homography import translation_matrix
from spfpn.models.spfpn import SPFPN, save_checkpoint
from spfpn.show.pictures import to_pil

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def spfpn():
    "`spfpn ARGUMENTS`; returns what it printed."

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        return result.output

    return call


def write_sequence(folder, photo, shift):
    "Six crops of a photograph, each moved by `shift` px from the one before, in HPatches' layout."
    folder.mkdir(parents=True)
    for k in range(6):
        to_pil(photo[:, :160, shift * k : shift * k + 200]).convert("RGB").save(
            folder / f"{k + 1}.ppm"
        )
        if k:
            np.savetxt(folder / f"H_1_{k + 1}", translation_matrix(-shift * k, 0).numpy())


@pytest.fixture(scope="module")
def photo():
    return torch.nn.functional.interpolate(
        torch.rand(1, 1, 40, 60, generator=torch.Generator().manual_seed(1)),
        size=(160, 240),
        mode="bicubic",
    ).clamp(0, 1)[0]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory, photo):
    "As many sequences as HPatches has, 116, of which eight have the names of the large ones."
    root = tmp_path_factory.mktemp("data")
    names = [
        *HPATCHES_LARGE,
        *(f"i_{n}" for n in range(57 - 5)),
        *(f"v_{n}" for n in range(59 - 3)),
    ]
    for name in names:
        write_sequence(root / "HPatches" / name, photo, 4)
    return root


def test_the_full_hpatches_and_the_540_pairs(miniature, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(miniature))
    whole, small = open_sequences("hpatches"), open_sequences("hpatches-108")
    assert (whole.name, len(whole), whole.pair_count()) == ("HPatches", 116, 580)
    assert (small.name, len(small), small.pair_count()) == ("HPatches-108", 108, 540)
    assert open_sequences("auto").name == "HPatches" and {s.name for s in whole} - {
        s.name for s in small
    } == set(HPATCHES_LARGE)


def test_published_figures_stand_beside_a_full_run_only(miniature, monkeypatch, spfpn, outputs):
    monkeypatch.setenv("DATA_DIR", str(miniature))
    protocols = ("--protocol", "R1", "--protocol", "R1:box")
    printed = spfpn("evaluate", *protocols, "--detector", "harris", "--sequences", "hpatches")
    assert "Beside published figures" in printed and "rpautrat/SuperPoint" in printed
    beside = compare_published(summarize(read_metrics(outputs / "metrics.parquet")))
    assert beside[["protocol", "split", "metric", "published"]].values.tolist() == [
        ["R1:box", "i", "repeatability@3", 0.63],
        ["R1:box", "v", "repeatability@3", 0.755],
    ]  # R1 keeps other points than those that were published
    assert (beside.here > 0.9).all()  # crops of one photograph are easier than HPatches
    assert beside.difference.tolist() == (beside.here - beside.published).tolist()
    assert not {"verdict", "tolerance"} & set(beside)  # no tolerance has a ground


def test_published_figures_name_what_this_library_can_measure():
    from spfpn.evaluate.protocol import get_protocol

    assert {get_protocol(name).name for name in PUBLISHED.protocol} == set(PUBLISHED.protocol)


def test_what_is_kept_is_used_and_never_by_another_checkpoint(
    tmp_path, photo, spfpn, monkeypatch, outputs
):
    write_sequence(tmp_path / "few" / "v_one", photo, 8)
    checkpoint = tmp_path / "run" / "phase1" / "best.safetensors"
    looked = []
    heatmap = SPFPN.heatmap
    monkeypatch.setattr(
        SPFPN, "heatmap", lambda self, images: looked.append(len(images)) or heatmap(self, images)
    )

    def evaluate(*more):
        before = len(looked)
        spfpn(
            "evaluate",
            "--protocol",
            "R1",
            "--detector",
            checkpoint,
            "--sequences",
            tmp_path / "few",
            *more,
        )
        rows = read_metrics(outputs / "metrics.parquet")
        return len(looked) - before, rows[rows.detector == "run/phase1/best"].reset_index(drop=True)

    torch.manual_seed(0)
    save_checkpoint(SPFPN(channels=8), checkpoint)
    count, first = evaluate()
    assert count == 6 and first.version.nunique() == 1 and first.set_digest.nunique() == 1
    count, again = evaluate()
    assert count == 0
    pd.testing.assert_frame_equal(first, again)
    assert evaluate("--no-cache")[0] == 6  # when asked to
    torch.manual_seed(1)
    save_checkpoint(SPFPN(channels=8), checkpoint)  # the same name and place, other weights
    count, other = evaluate()
    assert count == 6 and other.version[0] != first.version[0]
    to_pil(photo[:, :160, :200] * 0.9).convert("RGB").save(
        tmp_path / "few" / "v_one" / "1.ppm"
    )  # the same file name, other pixels
    count, moved = evaluate()
    assert count == 6 and moved.set_digest[0] != other.set_digest[0]


def test_versions_can_be_checked_by_hand(tmp_path):
    import hashlib

    from spfpn.features.factory import make_detector

    path = save_checkpoint(SPFPN(channels=8), tmp_path / "best.safetensors")
    assert make_detector(path).version == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_any_function_is_a_detector(tmp_path, spfpn, monkeypatch, outputs):
    """Shi-Tomasi, written by a stranger in five lines, gets the bundled Shi-Tomasi's numbers."""
    (tmp_path / "mine.py").write_text("""import cv2, numpy as np
def corners(image):
    response = cv2.cornerMinEigenVal(image, 5)
    y, x = np.nonzero(response > 0)
    return np.stack([x, y, response[y, x]], 1)
""")
    monkeypatch.chdir(tmp_path)
    spfpn(
        "evaluate",
        "--protocol",
        "R1",
        "--detector",
        "shi",
        "--detector",
        f"{tmp_path / 'mine.py'}:corners",
        "--detector",
        "mine:corners",
        "--sequences",
        "warped-samples",
        "--limit",
        1,
    )
    rows = read_metrics(outputs / "metrics.parquet").set_index("detector")["repeatability@3"]
    mine = [
        rows[name].tolist() for name in ("shi", f"{tmp_path / 'mine.py'}:corners", "mine:corners")
    ]
    assert mine[0] == mine[1] == mine[2]
    assert "no such file" in spfpn(
        "evaluate",
        "--protocol",
        "R1",
        "--detector",
        "nowhere.py",
        "--sequences",
        "warped-samples",
        code=2,
    )


def test_compare_and_results_read_what_was_measured(tmp_path, photo, spfpn):
    for k in range(6):
        write_sequence(tmp_path / "six" / f"v_{k}", photo, 4)
    spfpn(
        "evaluate",
        "--protocol",
        "R1",
        "--detector",
        "harris",
        "--detector",
        "fast",
        "--sequences",
        tmp_path / "six",
    )
    told = spfpn("compare", "harris", "random")
    assert "R1" in told and "significant at 5 %" in told and "not significant" not in told
    assert "R1 on six" in spfpn("results")
    assert "has harris, fast, random by R1" in spfpn("compare", "harris", "surf", code=2)
    assert "no metric 'speed'" in spfpn("compare", "harris", "fast", "--metric", "speed", code=2)
    assert "no such file" in spfpn("results", "--metrics", "nowhere.parquet", code=2)


def test_stability_of_a_moving_camera(tmp_path, photo, spfpn, outputs):
    (tmp_path / "frames").mkdir()
    for k in range(4):
        to_pil(photo[:, :120, 3 * k : 3 * k + 160]).save(tmp_path / "frames" / f"{k}.png")
    told = spfpn(
        "evaluate", "--protocol", "T1", "--detector", "harris", "--frames", tmp_path / "frames"
    )
    rows = read_metrics(outputs / "metrics.parquet")
    means = rows.groupby("detector")[["stability", "drift"]].mean()
    assert (
        "T1 on frames" in told
        and means.stability["harris"] > 0.9 > 0.5 > means.stability["random"]
        and means.drift["harris"] < 0.5
    )
    assert list(rows[rows.detector == "harris"]["pair"]) == ["1-2", "2-3", "3-4"]


def test_readme_is_made_from_measured_rows():
    "The table of results in README has the detectors and the numbers of the stored rows."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (file, table), *more = re.findall(r"<!-- overview: (\S+) .*? -->\n\n((?:\|.*\n)+)", text)
    rows = read_metrics(ROOT / "nbs" / file)
    means = rows[rows.protocol == "R1"].groupby("detector")["repeatability@3"].mean()
    lines = [[cell.strip("` ") for cell in line.split("|")] for line in table.splitlines()[2:]]
    assert not more and {"spfpn-s", "spfpn-l", "superpoint", "harris"} <= {c[1] for c in lines}
    for _, detector, figure, *_ in lines:
        assert f"{means[detector]:.3f}" == figure


def test_detectors_of_one_name_are_not_measured_as_one(spfpn, tmp_path):
    for part in ("a", "b"):
        save_checkpoint(
            SPFPN(channels=8), tmp_path / part / "previous" / "phase2" / "best.safetensors"
        )
    both = [
        part
        for name in ("a", "b")
        for part in ("--detector", tmp_path / name / "previous" / "phase2" / "best.safetensors")
    ]
    assert "are both called previous/phase2/best" in spfpn(
        "evaluate",
        "--protocol",
        "R1",
        "--sequences",
        "warped-samples",
        "--limit",
        1,
        *both,
        "--metrics",
        tmp_path / "m.parquet",
        code=2,
    )


def test_the_interval_is_the_headlines_or_none():
    rows = pd.DataFrame(
        [
            dict(
                protocol="S2",
                set="shapes-clean",
                detector="none",
                sequence=f"cube_{i}",
                kind="cube",
                pair="1",
                corners=i,
                detections=0,
                localized=0,
                localization_error=np.nan,
            )
            for i in range(3)
        ]
    )
    table = summarize(rows).query("split == 'all'")
    assert table[["low", "high"]].isna().all(axis=None)


def test_photographs_of_one_name_in_two_folders_are_two_sequences_and_unreadable_ones_are_left_out(
    tmp_path, photo
):
    for name in ("a/1.png", "b/1.png", "c/2.png", "d/3.png"):
        (tmp_path / name).parent.mkdir()
        to_pil(photo).save(tmp_path / name)
    (tmp_path / "c" / "2.png").write_bytes(b"")
    found = warped_folder_sequences(tmp_path, val_fraction=0.99)
    names = {s.name for s in found}
    assert len(names) == 4 and names < {f"{k}_{n}" for k in "iv" for n in ("a/1", "b/1", "d/3")}
    assert len(warped_folder_sequences(tmp_path / "a", val_fraction=0.5)) == 2


def test_what_is_measured_was_held_back(tmp_path, photo):
    for i in range(40):
        to_pil(photo[:, :32, :32]).save(tmp_path / f"{i}.png")
    for share in (0.05, 0.2):
        names = {
            s.name[2:] + ".png" for s in open_sequences(f"warped:{tmp_path}", val_fraction=share)
        }
        assert names == set(validation_ids([f"{i}.png" for i in range(40)], share))
