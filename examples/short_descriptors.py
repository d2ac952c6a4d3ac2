"""Measure the short descriptors of spfpn-s as those of any detector.

spfpn evaluate --protocol H2:own --sequences FOLDER --detector examples/short_descriptors.py:Short
"""

from spfpn.features.factory import make_detector


class Short:
    "A student whose descriptors have 64 numbers."

    def __init__(self, selection, device="cpu"):
        self.student = make_detector("spfpn-s", selection, device)
        self.detect, self.selection = self.student.detect, selection

    def detect_and_describe(self, images, mask=None):
        found = self.student.detect_and_describe(images, mask)
        return [self.student.shorten(keypoints) for keypoints in found]
