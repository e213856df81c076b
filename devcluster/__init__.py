"""A real Kubernetes control plane on one machine, without Docker and without root, for tests and the demo.

In reading order: `cluster` and `access` (what callers use), `spec` (wish, status, addresses, files), `supervisor` (the
process that owns a cluster), `components` (its parts as data), `probes`, `processes`, `pki`, `s3`, and `tools` with
`progress` (how the programs are built). `node` stands in for the kubelet. `python -m devcluster --help` is the command
line.
"""

from devcluster.access import S3Access
from devcluster.cluster import Cluster, ClusterError, CommandError
from devcluster.tools import ToolsError

__all__ = ["Cluster", "ClusterError", "CommandError", "S3Access", "ToolsError"]
