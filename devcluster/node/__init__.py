"""A node without Docker: the kubelet's part of Kubernetes, with pods as sandboxed processes of this machine.

Everything else in the devcluster is the real Kubernetes; this package stands in for kubelet, container runtime and
kube-proxy. What it writes into a pod's status is held against recordings of a real kubelet (tests/fixtures/kubelet).

Modules in reading order:
  settings    what a node is told, and its timings
  agent       registers the Node, keeps it alive, and gives each bound pod a worker
  pod         one pod's life: volumes, init containers, containers, and its end
  container   one container: its starts, restarts, hooks, probes, and how it is stopped
  configuration  what it is started with, and why it cannot be
  process     one run of a container: a bubblewrap process that outlives this one
  sandbox     the bubblewrap command line
  volumes     what is mounted: Secrets, ConfigMaps, tokens, downward API, emptyDir, hostPath
  env         environment variables and `$(VAR)`
  publisher   the pod's status on its way to the API server
  status      pure functions from what runs to what the API server is told
  memory      the memory limit
  storage     the ephemeral-storage limit
  probes      readiness, liveness and startup probes, hooks
  images      image names and the local environments that they stand for
  network     addresses of pods, and /etc/hosts
  proxy       Service addresses, forwarded to pods (a process of its own: python -m devcluster.node.proxy)
  server      logs for kubectl
  exec        commands in containers for kubectl
  faults      freeze, thaw, kill
  api, events, quantity   the API server, Events, quantities

What a sandbox is not: a security boundary. The root file system is this machine's, read-only, with a writable layer
beside it; the network is shared; CPU limits are not enforced; runAsUser holds inside (a user namespace of one user),
groups, capabilities, seccomp and SELinux options are not looked at.
"""
