"""The import of torch without what a training on CPUs never uses: a fifth to a quarter of its time.

`torch._meta_registrations` defines in Python what operators do on the meta device, for torch's compiler and fake tensors; with the
decompositions and reference implementations that it imports, half a second. It is left out of the import, and comes as soon as one
of them is imported. The bindings of the CUDA driver are left out too; torch is made to do without them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

META = "torch._meta_registrations"
WITH_META = {
    "torch._decomp",
    "torch._refs",
    "torch._prims",
    "torch.utils._content_store",
    "torch.testing._internal.common_dtype",
}
"""What is imported with it, and by nothing else of torch's own import. They import each other in circles: all goes well only when the
registrations come first, as usual."""
BINDINGS = "cuda.bindings"


def import_torch() -> None:
    """Imports torch, unless somebody did already. Not where GPUs are used, and torch's compiler may be with them."""
    if "torch" in sys.modules:
        return
    sys.modules[META] = ModuleType(META)
    # What Python takes for "there is no such module".
    sys.modules[BINDINGS] = None  # pyright: ignore[reportArgumentType]
    try:
        import torch  # noqa: F401
    finally:
        sys.modules.pop(META, None)
        sys.modules.pop(BINDINGS, None)
    sys.meta_path.insert(0, MetaFirst())


class MetaFirst(MetaPathFinder, Loader):
    """Imports the registrations before the first module that needs them, once."""

    def __init__(self) -> None:
        self._real: ModuleSpec | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != META and fullname not in WITH_META:
            return None
        sys.meta_path.remove(self)
        return None if fullname == META else ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        import_module(META)
        module = sys.modules[spec.name]
        self._real = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was executed when the registrations imported it."""
        module.__spec__ = self._real
