"""Matchers and estimators that users write: what they may return, and what an error says."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from spfpn.core.registry import ESTIMATORS, Entry
from spfpn.features.keypoints import Keypoints
from spfpn.geometry.estimation import estimate_homography
from spfpn.matching.matchers import MatchedIndices, make_matcher, match_keypoints

XY = torch.tensor([[3.0, 4], [90, 9], [80, 70], [5, 66], [40, 30]])
MOVED = XY + torch.tensor([2.0, 1])
POINTS = Keypoints(XY, torch.ones(5), torch.eye(5))
SIZES = (96, 128), (96, 128)


class Returning:
    "A matcher of fixed answers."

    name = "mine.py:mine"

    def __init__(self, given):
        self.given = given

    def match(self, keypoints0, keypoints1, size0, size1):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


GRADIENT = torch.tensor([[0.0, 1], [2, 2]], requires_grad=True)
PAIRS = [[0, 1], [2, 2]]


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, []),
        ([], []),
        (torch.zeros(0, 2), []),
        (np.zeros((0, 2), int), []),
        (PAIRS, PAIRS),
        ([(0, 1), (2, 2)], PAIRS),
        (GRADIENT, PAIRS),
        (list(GRADIENT), PAIRS),
        ([tuple(row) for row in GRADIENT], PAIRS),
        (torch.tensor(PAIRS, dtype=torch.int32), PAIRS),
        (np.array(PAIRS, np.uint8), PAIRS),
        (torch.tensor(PAIRS, dtype=torch.bfloat16), PAIRS),
    ],
)
def test_a_matcher_may_return_indices_in_any_form(given, expected):
    found, scores = match_keypoints(Returning(given), POINTS, POINTS, *SIZES)
    assert scores.tolist() == [1.0] * len(expected)
    assert found.dtype == torch.int64 and found.shape == (len(expected), 2)
    assert found.tolist() == expected and not found.requires_grad


@pytest.mark.parametrize(
    "given, said",
    [
        ([[0, 1], [2]], "an object of type list of length 2"),
        ([[[0]]], r"an array of shape \(1, 1, 1\)"),
        (3, r"an array of shape \(\)"),
        (torch.arange(5), r"an array of shape \(5,\)"),
        (torch.zeros(5, 3), r"an array of shape \(5, 3\)"),
        (([0, 1], [0.9]), "an object of type tuple of length 2"),
        ("mnn", "an object of type str of length 3"),
        ({"matches": PAIRS}, "an object of type dict of length 1"),
        ([cv2.DMatch(0, 1, 0.5)], "an object of type list of length 1"),
        ([[0, 5]], "no indices of the keypoints"),
        (
            MatchedIndices(torch.tensor(PAIRS), torch.ones(3)),
            r"scores of shape \(3,\); .*scores \[2\]",
        ),
        ([[-1, 0]], "no indices of the keypoints"),
        ([[0.5, 1]], "no indices of the keypoints"),
        ([[float("nan"), 1]], "no indices of the keypoints"),
        (ZeroDivisionError("oh"), "failed: ZeroDivisionError: oh .*test_user_parts.py, line"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_anything_else_is_an_error_that_names_the_matcher(given, said):
    with pytest.raises(ValueError, match=rf"^matcher 'mine.py:mine' (returned )?.*{said}"):
        match_keypoints(Returning(given), POINTS, POINTS, *SIZES)


@pytest.mark.parametrize(
    "code, said",
    [
        ("def mine(features, device):\n    return None", "made None; expected an object with"),
        ("def mine(features, device):\n    return 3", "made an object of type int; expected"),
        ("def mine(points, more, a, b):\n    pass", r"failed: TypeError: mine\(\) missing 2 req"),
        ("class mine:\n    pass", "failed: TypeError: mine.* takes no arguments"),
        (
            "class mine:\n    def __init__(self, features, device):\n        1 / 0",
            "failed: ZeroDivisionError: division by zero .*parts.py, line 3",
        ),
    ],
)
def test_what_makes_no_matcher_is_named(code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("parts.py").write_text(code)
    with pytest.raises(ValueError, match=f"^matcher 'parts.py:mine' {said}"):
        make_matcher("parts.py:mine", "aliked")


# ---- estimators


@pytest.fixture
def estimated(monkeypatch):
    "estimated(given): what `estimate_homography` says with this estimator."

    def run(given):
        def mine(xy1, xy2, threshold):
            if isinstance(given, Exception):
                raise given
            return given(xy1, xy2, threshold) if callable(given) else given

        ESTIMATORS.names()  # loads those of the library
        monkeypatch.setitem(ESTIMATORS._entries, "mine", Entry(mine, {}))
        return estimate_homography(XY, MOVED, 3.0, "mine")

    return run


EYE = torch.eye(3, requires_grad=True)


@pytest.mark.parametrize(
    "given, inliers",
    [
        ((np.eye(3), 4), 4),
        ((EYE, torch.tensor(4)), 4),
        ([EYE.double(), np.int64(4)], 4),
        ((EYE.tolist(), 4.0), 4),
        ((np.eye(3, dtype=np.float32), [True, False, True, True, True]), 4),
        ((EYE, torch.tensor([[1], [0], [1], [1], [1]], dtype=torch.uint8)), 4),
        ((np.eye(3), None), 0),
        (lambda a, b, t: cv2.findHomography(a, a, cv2.RANSAC, t), 5),
    ],
)
def test_an_estimator_may_return_numbers_in_any_form(estimated, given, inliers):
    H, count = estimated(given)
    assert H.dtype == torch.float64 and not H.requires_grad
    assert torch.allclose(H, torch.eye(3).double()) and count == inliers and type(count) is int


@pytest.mark.parametrize("given", [None, (None, 0), (None, None), (np.full((3, 3), np.nan), 0)])
def test_an_estimator_may_find_nothing(estimated, given):
    assert estimated(given) == (None, 0)


@pytest.mark.parametrize(
    "given, said",
    [
        ([], "an object of type list of length 0"),
        (EYE, r"an object of type Tensor and shape \[3, 3\]"),
        ((EYE, 4, 5), "an object of type tuple of length 3"),
        (([[1, 0], [0]], 4), "an object of type list of length 2"),
        ((EYE[:2], 4), r"an array of shape \(2, 3\)"),
        ((EYE.flatten(), 4), r"an array of shape \(9,\)"),
        (("eye", 4), "an object of type str of length 3"),
        ((EYE, "many"), "an object of type str of length 4"),
        ((EYE, [1, 0]), "an object of type list of length 2"),
        ((EYE, -1), "-1 inliers of 5 matches"),
        ((EYE, 6), "6 inliers of 5 matches"),
        ((EYE, float("nan")), "nan inliers of 5 matches"),
    ],
)
def test_anything_else_is_an_error_that_names_the_estimator(estimated, given, said):
    wanted = "; expected a homography .3, 3. or None, and the number of its inliers$"
    with pytest.raises(ValueError, match=f"^estimator 'mine' returned {said}{wanted}"):
        estimated(given)


@pytest.mark.parametrize(
    "given, said",
    [
        (ZeroDivisionError("oh"), "ZeroDivisionError: oh .*test_user_parts.py, line"),
        (lambda a: None, "TypeError: .*takes 1 positional argument but 3 were given"),
    ],
)
def test_an_estimator_that_fails_is_named(estimated, given, said):
    with pytest.raises(ValueError, match=f"^estimator 'mine' failed: {said}"):
        estimated(given)


def test_an_estimator_of_another_signature_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("parts.py").write_text("def mine(matches):\n    return None")
    with pytest.raises(ValueError, match="^estimator 'parts.py:mine' failed: TypeError: mine"):
        estimate_homography(XY, MOVED, 3.0, "parts.py:mine")
