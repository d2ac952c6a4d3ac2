"""Work on many photographs in one process, from several threads, and watch memory and results.

`python tools/soak.py onnx` (or `torch`) detects, describes and matches 10,000 photographs of
changing sizes. It prints how much memory the process holds as it goes on, the slope after the
first fifth, and whether every result equals that of a first pass.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from spfpn.data.images import sample_images
from spfpn.geometry.homography import resize_image

KINDS = 40  # pairs of photographs, each of a size of its own
SIDES = (120, 480)  # pixels
REPORTS = 10  # lines of the table
WARM = 0.2  # of the run, before memory is expected to stay level

Pair = tuple[np.ndarray, np.ndarray]


def make_pairs() -> list[Pair]:
    "Return pairs of gray photographs [H, W], cut from the bundled ones and scaled."
    rng = np.random.default_rng(0)
    photos = sample_images()
    pairs = []
    for kind in range(KINDS):
        size = tuple(int(side) for side in rng.integers(*SIDES, 2))
        photo = photos.load(kind % len(photos), (600, 600))[0]
        one, two = photo[..., :560, :560], photo[..., 40:, 40:]
        pairs.append(
            tuple(resize_image(view, size)[0][0].clamp(0, 1).numpy() for view in (one, two))
        )
    return pairs


def make_match(runtime: str) -> Callable[[Any, Any], Any]:
    "Return a function that matches two photographs."
    if runtime == "onnx":
        from spfpn.runtime.matching import LightMatcher

        return LightMatcher(max_keypoints=500).match
    from spfpn.matching.image_matcher import ImageMatcher

    return ImageMatcher(matcher="mnn", max_keypoints=500).match


def digest(matches: Any) -> str:
    "Return a digest of all keypoints and of the pairs."
    ends = [matches.image0.keypoints, matches.image1.keypoints]
    arrays = [np.asarray(values) for k in ends for values in (k.xy, k.scores, k.descriptors)]
    data = b"".join(array.tobytes() for array in (*arrays, np.asarray(matches.indices)))
    return hashlib.sha256(data).hexdigest()


def order(n: int) -> Iterator[int]:
    "Yield kinds of pairs at random."
    rng = np.random.default_rng(1)
    yield from (int(kind) for kind in rng.integers(KINDS, size=n))


def run(match: Callable[[Any, Any], Any], pairs: list[Pair], n: int, threads: int) -> list[float]:
    "Match `n` pairs; return the memory in MB after each part. Raises where a result differs."
    expected = [digest(match(*pair)) for pair in pairs]
    process, memory = psutil.Process(), []

    def check(kind: int) -> None:
        if digest(match(*pairs[kind])) != expected[kind]:
            raise SystemExit(f"pair {kind} has another result than at first")

    waiting = order(n)
    with ThreadPoolExecutor(threads) as pool, tqdm(total=n, unit="pair") as bar:
        while part := list(islice(waiting, max(1, n // (10 * REPORTS)))):
            for _ in pool.map(check, part):
                bar.update()
            memory.append(process.memory_info().rss / 1e6)
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtime", choices=("onnx", "torch"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=4)
    given = parser.parse_args()
    pairs = make_pairs()
    memory = run(make_match(given.runtime), pairs, given.images // 2, given.threads)
    images = np.linspace(0, given.images, len(memory) + 1)[1:]
    print("| photographs | memory, MB |\n|---|---|")
    for k in range(len(memory) // REPORTS - 1, len(memory), max(1, len(memory) // REPORTS)):
        print(f"| {images[k]:.0f} | {memory[k]:.0f} |")
    warm = images > WARM * given.images
    slope = np.polyfit(images[warm], np.array(memory)[warm], 1)[0]
    print(f"slope after {WARM:.0%}: {1000 * slope:+.2f} MB per 1,000 photographs; same results")


if __name__ == "__main__":
    sys.exit(main())
