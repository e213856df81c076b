"""torch without what a training never uses; whoever does need it gets it."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from trainyard_trainer.lean_torch import import_torch
import_torch(gpus=0)
for left_out in ("torch._meta_registrations", "torch._decomp", "torch._refs", "cuda.bindings"):
    assert left_out not in sys.modules, left_out
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    given = torch.empty(2, 3, 8, 8, device="cuda", requires_grad=True)
    made = torch.nn.functional.adaptive_avg_pool2d(torch.nn.functional.interpolate(given, scale_factor=2.0), 5)
    torch.linalg.solve_triangular(torch.empty(4, 4), torch.empty(4, 2), upper=True)
assert made.shape == (2, 3, 5, 5) and made.device.type == "cuda"
import torch._decomp
assert torch._decomp.decomposition_table
assert torch._meta_registrations.meta_index_Tensor
"""


@pytest.mark.training
def test_a_training_on_cpus_imports_less_of_torch_and_the_rest_comes_when_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
