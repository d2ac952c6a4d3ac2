"""`spfpn watch`: videos and folders, what cannot be read, Ctrl-C, a full disk, and the window."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from spfpn.apps import cli_watch
from spfpn.apps.cli import app
from spfpn.core.files import data_dir
from spfpn.data.decode import decode_image
from spfpn.data.images import sample_images
from spfpn.data.video import open_video, write_video
from spfpn.runtime.keypoints import Keypoints
from spfpn.runtime.tracks import Tracker

ROOT = data_dir() or Path("data")
PLACES = (ROOT / "frames" / "tum", ROOT / "TUM" / "freiburg1_xyz")
TUM = next((place for place in PLACES if place.is_dir()), None)
PIXELS = decode_image(sample_images(("coffee.png",)).paths[0]).transpose(1, 2, 0)
PHOTO = (PIXELS[::2, ::2] * 255).astype(np.uint8)  # 200 × 300


def frame(k: int) -> np.ndarray:
    "Frame `k` of a window that moves two pixels to the right."
    return np.ascontiguousarray(PHOTO[:120, 2 * k : 2 * k + 160])


@pytest.fixture
def clip(tmp_path) -> Path:
    "A video of twelve frames."
    with write_video(tmp_path / "clip.mp4", fps=12) as add:
        for k in range(12):
            add(frame(k))
    return tmp_path / "clip.mp4"


@pytest.fixture
def frames(tmp_path) -> Path:
    "The same frames as pictures, of which 9 comes before 10."
    (tmp_path / "frames").mkdir()
    for k in range(12):
        Image.fromarray(frame(k)).save(tmp_path / "frames" / f"{k}.png")
    return tmp_path / "frames"


def run(*arguments: object):
    return CliRunner().invoke(app, ["watch", *map(str, arguments)])


def test_a_video_becomes_one_with_keypoints_and_tracks(clip, tmp_path):
    done = run(clip, "--out", tmp_path / "points.mp4", "--max-keypoints", 60)
    assert done.exit_code == 0, done.output
    assert re.search(r"12 frames in .* frames/s, \d+ keypoints a frame, \d+% tracked", done.output)
    assert "wrote 12 frames to" in done.output
    made = open_video(tmp_path / "points.mp4")
    shown = list(made)
    assert (made.fps, len(shown), shown[0].shape) == (12, 12, (120, 160, 3))
    blue = np.array([(f[..., 2].astype(int) - f[..., 0] > 60).sum() for f in shown])
    assert blue[-1] > blue[0] + 100, "tracks are blue, and the first frame has none"
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "points.mp4"}


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mov"])
def test_other_kinds_of_files(suffix, clip, tmp_path):
    done = run(clip, "--out", tmp_path / f"points{suffix}", "--limit", 4, "--fps", 5)
    assert done.exit_code == 0, done.output
    made = open_video(tmp_path / f"points{suffix}")
    assert (made.fps, len(list(made))) == (5, 4)


def test_a_folder_is_read_in_the_order_of_its_numbers(frames):
    shown = list(open_video(frames))
    assert len(shown) == 12 and all(np.array_equal(f, frame(k)) for k, f in enumerate(shown))


def test_a_folder_becomes_pictures(frames, tmp_path):
    done = run(frames, "--out", tmp_path / "points", "--limit", 3)
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "points").iterdir())
    assert names == ["000001.jpg", "000002.jpg", "000003.jpg"]


@pytest.mark.parametrize("matcher, detector", [("nearest", "spfpn-s"), ("", "harris")])
def test_tracks_by_place_need_no_descriptors(matcher, detector, frames, tmp_path):
    options = ("--detector", detector, *(("--matcher", matcher) if matcher else ()))
    done = run(frames, "--out", tmp_path / "points.mp4", *options)
    assert done.exit_code == 0, done.output
    assert int(re.search(r"(\d+)% tracked", done.output)[1]) > 30


# ---- what cannot be read


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_a_broken_frame_is_named_and_left_out(content, frames, tmp_path):
    (frames / "5.png").write_bytes(content)
    done = run(frames, "--out", tmp_path / "points.mp4")
    assert done.exit_code == 2 and "5.png: not a readable image" in done.output
    assert len(list(open_video(tmp_path / "points.mp4"))) == 11


def test_a_frame_of_another_size_is_named(frames, tmp_path):
    Image.fromarray(PHOTO).save(frames / "5.png")
    done = run(frames, "--out", tmp_path / "points.mp4")
    assert done.exit_code == 2
    assert "5.png: 300×200 pixels, while the first frame has 160×120" in done.output


def test_a_video_that_ends_early_is_named(tmp_path):
    with write_video(tmp_path / "whole.avi") as add:
        for k in range(40):
            add(frame(k % 12))
    whole = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    done = run(tmp_path / "cut.avi", "--out", tmp_path / "points.mp4")
    found = re.search(r"cut.avi: ends after (\d+) of 40 frames", done.output)
    assert done.exit_code == 2 and found, done.output
    assert len(list(open_video(tmp_path / "points.mp4"))) == int(found[1]) < 40


def test_what_is_no_video_is_named(tmp_path, clip):
    (tmp_path / "notes.mp4").write_text("notes")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    for source, said in {
        "notes.mp4": "notes.mp4: not a video that OpenCV can read",
        "gone.mp4": "gone.mp4: no such file. Give a video",
        "empty": "empty: no image in it",
        "broken": "broken: no frame in it can be read",
    }.items():
        done = run(tmp_path / source, "--out", tmp_path / "points.mp4")
        assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output
    assert not (tmp_path / "points.mp4").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (("--out", "points.gif"), "a video's name ends with .mp4"),
        (("--out", "points.mp4", "--matcher", "flow"), "Choose one of mnn, nearest"),
        (("--out", "points.mp4", "--matcher", "mnn", "--detector", "harris"), "does not describe"),
        ((), "no display for a window here: give --out"),
    ],
)
def test_what_cannot_work_is_told(options, said, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    done = run(clip, *options)
    assert done.exit_code == 2 and said in done.output, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_webcam_that_is_not_there_is_named(tmp_path, monkeypatch):
    closed = type("Closed", (), dict(isOpened=lambda self: False))
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: closed())
    done = run(0, "--out", tmp_path / "points.mp4")
    assert done.exit_code == 2 and "webcam 0: cannot be opened" in done.output


# ---- ends


def test_ctrl_c_ends_with_a_whole_file(tmp_path):
    with write_video(tmp_path / "long.mp4") as add:
        for k in range(4000):
            add(frame(k % 60)[:48, :64])
    out = tmp_path / "points.mp4"
    command = [sys.executable, "-m", "spfpn", "watch", tmp_path / "long.mp4", "--out", out]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("points.mp4.part*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said, errors = child.communicate(timeout=60)
    assert child.returncode == 0 and "Traceback" not in errors, errors
    count = int(re.search(r"wrote (\d+) frames", said)[1])
    assert 0 < count < 4000 and len(list(open_video(out))) == count
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.mp4", "points.mp4"]


def test_a_disk_that_fills_up_keeps_the_older_file(clip, tmp_path, monkeypatch):
    (tmp_path / "points.mp4").write_text("old")

    class Full:  # OpenCV reports nothing
        def __init__(self, path, *_):
            Path(path).touch()

        def isOpened(self):
            return True

        def write(self, _):
            pass

        release = isOpened

    monkeypatch.setattr(cv2, "VideoWriter", Full)
    monkeypatch.setattr(cv2, "VideoWriter_fourcc", lambda *_: 0, raising=False)
    done = run(clip, "--out", tmp_path / "points.mp4")
    assert done.exit_code == 2 and "0 of 12 frames arrived" in done.output, done.output
    assert "MB are free there" in done.output
    assert (tmp_path / "points.mp4").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "points.mp4"]


@pytest.mark.parametrize("key, frames_shown", [(255, 12), (ord("q"), 3)])
def test_a_window_shows_frames_until_it_is_closed(key, frames_shown, clip, monkeypatch):
    shown: list[np.ndarray] = []
    monkeypatch.setattr(cli_watch, "_can_show", lambda: True)
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: key if len(shown) == 3 else 255)
    done = run(clip)
    assert done.exit_code == 0 and len(shown) == frames_shown, done.output


# ---- tracks


def test_a_track_has_the_places_of_its_keypoint():
    tracker, start = Tracker("nearest", max_step=3, length=3), np.array([[10.0, 10], [90, 90]])
    for k in range(4):
        xy = np.concatenate((start + k, [[50, 50]])) if k == 2 else start + k
        known = tracker.update(Keypoints(xy, np.ones(len(xy))))
        assert known.tolist() == ([False] * 2 if k == 0 else [True, True, False][: len(xy)])
    assert tracker.places[0].tolist() == [[11, 11], [12, 12], [13, 13]]
    assert tracker.lengths.tolist() == [3, 3]
    tracker.update(Keypoints(start + 50, np.ones(2)))
    assert tracker.lengths.tolist() == [1, 1], "they jumped too far"
    tracker.update(Keypoints(np.zeros((0, 2)), np.zeros(0)))
    assert len(tracker.places) == 0


@pytest.mark.skipif(TUM is None, reason="needs $DATA_DIR/frames/tum, or `spfpn data tum-xyz`")
def test_frames_of_a_hand_held_camera_are_tracked(tmp_path):
    done = run(TUM, "--out", tmp_path / "points.mp4", "--limit", 6)
    assert done.exit_code == 0, done.output
    assert int(re.search(r"(\d+)% tracked", done.output)[1]) > 60
