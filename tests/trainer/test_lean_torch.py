"""torch without what a training never uses; whoever does need it gets it."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from trainyard_trainer import lean_torch
lean_torch.import_torch()
before = set(sys.modules)
assert not before & {lean_torch.META, *lean_torch.WITH_META, "cuda.bindings"}
import trainyard_trainer.assemble, trainyard_trainer.detector, trainyard_trainer.publish
assert not {"torchvision", "torch._dynamo", "onnx", "matplotlib", "sympy", lean_torch.META} & set(sys.modules)

# In the order in which torch's compiler comes to it.
import torch.utils._content_store as store
assert store.ContentStoreReader and store.__spec__.loader.__class__.__name__ == "SourceFileLoader"
came = {name for name in set(sys.modules) - before if name.startswith("torch.")}
outermost = {name for name in came if name.rsplit(".", 1)[0] not in came}
assert outermost == {lean_torch.META, *lean_torch.WITH_META}, outermost

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    given = torch.empty(2, 3, 8, 8, device="cuda", requires_grad=True)
    made = torch.nn.functional.adaptive_avg_pool2d(torch.nn.functional.interpolate(given, scale_factor=2.0), 5)
    torch.linalg.solve_triangular(torch.empty(4, 4), torch.empty(4, 2), upper=True)
assert made.shape == (2, 3, 5, 5) and made.device.type == "cuda"
"""

TORCHVISION = """
import sys
from trainyard_trainer import lean_torch
lean_torch.import_torch()
import trainyard_trainer.image_network, trainyard_trainer.rcnn
from trainyard_trainer.lean_torchvision import torchvision
assert not {lean_torch.META, "torch._dynamo", "torch._dynamo.utils", "torch._inductor", "sympy"} & set(sys.modules)

asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported
from torch._dynamo.utils import is_compile_supported
assert all(asked(device) == is_compile_supported(device) for device in ("cpu", "cuda"))
"""


@pytest.mark.training
@pytest.mark.parametrize("program", [PROGRAM, TORCHVISION], ids=["ours", "torchvision's"])
def test_a_training_on_cpus_imports_less_of_torch_and_the_rest_comes_when_it_is_asked_for(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
