import sys
from pathlib import Path

# The benchmarks are scripts: each finds its neighbours in its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "operator"))
