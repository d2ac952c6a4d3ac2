"Light keypoint networks, trained by the student-teacher method and measured beside their teachers."

from importlib import import_module
from importlib.util import find_spec

__version__ = "0.1.0"

# imported when asked for: PyTorch takes seconds, and `spfpn --help` needs none of it
_LAZY = {
    "load": "spfpn.features.factory",
    "list_pretrained": "spfpn.models.spfpn",
    "match": "spfpn.matching.image_matcher",
}
_WITHOUT_TORCH = {"load": "spfpn.runtime.light", "match": "spfpn.runtime.matching"}


def __getattr__(name: str):
    "Import a public function when it is first asked for. Raises AttributeError."
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    known = _LAZY if find_spec("torch") else _LAZY | _WITHOUT_TORCH
    return getattr(import_module(known[name]), name)
