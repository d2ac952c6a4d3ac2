"""Write the bundled students as ONNX into spfpn/weights, for installs without PyTorch.

`python tools/bundled_onnx.py [NAME ...]`; without a name, all that are there as ONNX already.
"""

import sys

from spfpn.features.bundled_onnx import save_bundled_graphs
from spfpn.runtime.light import WEIGHTS_DIR, bundled_graphs

for name in sys.argv[1:] or bundled_graphs():
    for path in save_bundled_graphs(name, WEIGHTS_DIR):
        print(f"wrote {path}: {path.stat().st_size / 1000:.0f} kB")
