"""torchvision, imported without torch's compiler: `from trainyard_trainer.lean_torchvision import torchvision`.

torchvision imports the compiler, 1.3 s of CPU time, for one question that `roi_align` asks on GPUs that must be deterministic. It is
still asked there, and brings the compiler then.
"""

import sys
from types import ModuleType

COMPILER = "torch._dynamo"
ASKED = "torch._dynamo.utils"


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


def _import_torchvision() -> None:
    if COMPILER in sys.modules or "torchvision" in sys.modules:
        return
    asked = ModuleType(ASKED)
    asked.__dict__["is_compile_supported"] = _is_compile_supported
    sys.modules.update({COMPILER: ModuleType(COMPILER), ASKED: asked})
    try:
        import torchvision  # noqa: F401
    finally:
        del sys.modules[COMPILER], sys.modules[ASKED]


_import_torchvision()

import torchvision  # noqa: E402

__all__ = ["torchvision"]
