"""Match two photographs with ONNX Runtime, NumPy and Pillow alone; spfpn need not be installed.

spfpn export spfpn-s --max-keypoints 1000 --describe     # once, where spfpn is: spfpn-s.onnx
python match_onnx.py spfpn-s.onnx a.jpg b.jpg
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image


def describe(session, path):
    "Return keypoints [N, 2] (x, y) and descriptors [N, 128] of a photograph."
    gray = np.asarray(Image.open(path).convert("L"), np.float32) / 255
    _, xy, scores, descriptors = session.run(None, {"image": gray[None, None]})
    return xy[0][scores[0] > 0], descriptors[0][scores[0] > 0]


def match(one, two):
    "Return the indices [K, 2] of mutual nearest neighbors."
    similarity = one @ two.T
    there, back = similarity.argmax(1), similarity.argmax(0)
    first = np.flatnonzero(back[there] == np.arange(len(there)))
    return np.stack((first, there[first]), 1)


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1])
    (xy0, d0), (xy1, d1) = (describe(session, path) for path in sys.argv[2:4])
    for i, j in match(d0, d1):
        print(*(f"{value:.2f}" for value in (*xy0[i], *xy1[j])))
