"""For `torch.hub.load("OWNER/spfpn", "spfpn_s")`: the bundled students."""

dependencies = ["kornia", "numpy", "PIL", "safetensors", "skimage", "timm", "torch", "torchvision"]


def spfpn_s(**options):
    "Load spfpn-s, which finds keypoints and describes them; options are those of `spfpn.load`."
    import spfpn

    return spfpn.load("spfpn-s", **options)


def spfpn_l(**options):
    "Load spfpn-l, which finds keypoints; options are those of `spfpn.load`."
    import spfpn

    return spfpn.load("spfpn-l", **options)
