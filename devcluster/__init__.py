"""A real Kubernetes control plane on one machine, without Docker and without root, for tests and the demo.

In reading order: `cluster` and `access` (what callers use), `spec` (wish, status, addresses, files), `supervisor` (the
process that owns a cluster), `components` (its parts as data), `probes`, `processes`, `pki`, `s3`, and `tools` with
`progress` (how the programs are built). `node` stands in for the kubelet. `python -m devcluster --help` is the command
line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devcluster.access import S3Access
    from devcluster.cluster import Cluster, ClusterError, CommandError
    from devcluster.tools import ToolsError

__all__ = ["Cluster", "ClusterError", "CommandError", "S3Access", "ToolsError"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: a node, which is a part of this package too, must start fast and needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = {"S3Access": "access", "ToolsError": "tools"}.get(name, "cluster")
    return getattr(import_module(f"{__name__}.{module}"), name)
