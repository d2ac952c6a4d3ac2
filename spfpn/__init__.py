"Light keypoint networks, trained by the student-teacher method and measured beside their teachers."

from importlib import import_module

__version__ = "0.1.0"

# imported when asked for: PyTorch takes seconds, and `spfpn --help` needs none of it
_LAZY = {
    "load": "spfpn.features.factory",
    "list_pretrained": "spfpn.models.spfpn",
    "match": "spfpn.matching.image_matcher",
}


def __getattr__(name: str):
    "Import a public function when it is first asked for. Raises AttributeError."
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
