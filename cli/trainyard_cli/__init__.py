"""The command line: `trainyard`, also installed as the kubectl plugin `kubectl-trainyard`.

In reading order: `main` (the commands and where they live, failures as one sentence), `errors`, `output` (tables, JSON, YAML),
`cluster` (the user's kubeconfig and the few calls that the commands need), `job` (`job …`), `jobview` (how a job is shown),
`submit` and `watch` (`job submit`, `job watch`), `options`, `service` (`service …`), `architectures`, `dataset` (`dataset …`), `run` (train on this machine without a cluster).
"""
