"""Why no node takes a pod, from the scheduler's sentence and from what is known of the nodes: what to do about each part of it.

`0/3 nodes are available: 2 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint(s).` counts nodes by what is wrong with
them and names neither the amount, nor the node, nor the taint. Where the operator may read nodes it adds these.
"""

import re
from collections.abc import Mapping

from trainyard_operator.decide.model import AttemptPod, NodeView, Taint, Wants
from trainyard_operator.decide.subject import Subject

NO_NODE = "No node fits the pod: "
MAX_HINTS = 3
MAX_NAMED = 3
DECIMAL = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
BINARY = {f"{letter}i": 2.0 ** (10 * power) for power, letter in enumerate("KMGTPE", 1)}
SUFFIXES = DECIMAL | BINARY
BLOCKING = ("NoSchedule", "NoExecute")
PLACING = ("node_selector", "affinity", "machine_type", "preemptible")
"""Fields of an instance that choose its nodes."""
CORDON = "node.kubernetes.io/unschedulable"

Nodes = Mapping[str, NodeView] | None


def no_node_fits(detail: str, pod: AttemptPod, subject: Subject) -> str:
    """The scheduler's sentence, and what to do."""
    return f"{NO_NODE}{detail}. {_hints(detail, pod, subject)}"


def complaints(message: str) -> frozenset[str]:
    """What the scheduler says is wrong in a sentence of `no_node_fits`, whatever the order and the numbers; empty: it is another."""
    if not message.startswith(NO_NODE):
        return frozenset()
    detail, _, _ = message.removeprefix(NO_NODE).partition(". ")
    return frozenset(text for _, text in _parts(detail))


def quantity(text: str) -> float | None:
    """The number that a Kubernetes quantity stands for (`500m`, `8Gi`, `1e3`); None when it is none."""
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?\d+)?)([numkMGTPE]|[KMGTPE]i)?", text)
    if match is None:
        return None
    return float(match[1]) * SUFFIXES[match[2] or ""]


def _hints(detail: str, pod: AttemptPod, subject: Subject) -> str:
    """A sentence for each of the scheduler's reasons, the one that holds for most nodes first."""
    if "no nodes available" in detail or re.match(r"0/0 nodes", detail):
        return "The cluster has no node; add one."
    hints: list[str] = []
    for _, text in sorted(_parts(detail), key=lambda part: -part[0]):
        hint = _hint(text, pod.wants or Wants(), subject)
        if hint not in hints:
            hints.append(hint)
    return " ".join(hints[:MAX_HINTS])


def _parts(detail: str) -> list[tuple[int, str]]:
    """(nodes, what is wrong with them); the whole sentence when it is put in another way (a missing claim)."""
    listed = re.sub(r"^0/\d+ nodes are available: ", "", detail).rstrip(". ")
    found = re.findall(r"(\d+) (.+?)(?=, \d+ |$)", listed)
    return [(int(count), text) for count, text in found] or [(0, listed)]


def _hint(text: str, wants: Wants, subject: Subject) -> str:
    if match := re.match(r"Insufficient (\S+)", text):
        return _insufficient(match[1].rstrip(".,"), wants, subject)
    if "node affinity/selector" in text:
        return _selector(wants, subject)
    if "untolerated taint" in text:
        return _taints(text, wants, subject)
    if "were unschedulable" in text:
        return _cordoned(subject.nodes)
    if "Too many pods" in text:
        return "Nodes run as many pods as they may; add a node, or wait for pods to end."
    if "volume" in text.lower():
        return f"Check {subject.field('cache')} and its PersistentVolumeClaim (`kubectl describe pvc`)."
    if "free ports" in text:
        return "A port that the pod asks for is taken on the node."
    if "affinity" in text or "topology spread" in text:
        return f"Mend {subject.field('affinity')}."
    return f"See {subject.anything()} and `kubectl describe nodes`."


def _insufficient(resource: str, wants: Wants, subject: Subject) -> str:
    nodes, less = subject.nodes, f"ask for less in {subject.sizes(resource)}"
    asked = wants.resources.get(resource)
    amount = quantity(asked) if asked else None
    if nodes is None or asked is None or amount is None:
        return f"Free or add {resource} (`kubectl describe nodes` shows what there is), or {less}."
    have = {name: quantity(node.allocatable.get(resource, "0")) or 0.0 for name, node in nodes.items()}
    largest = max(have, key=lambda name: (have[name], name), default=None)
    if largest is None or not have[largest]:
        return f"The pod asks for {asked} {resource}, and no node has any: add one that does, with its device plugin, or {less}."
    if have[largest] < amount:
        most = nodes[largest].allocatable[resource]
        return (
            f"The pod asks for {asked} {resource}, and the largest node, {largest}, has {most}: add a larger node, or "
            f"{less}."
        )
    enough = sum(value >= amount for value in have.values())
    return (
        f"The pod asks for {asked} {resource}; {enough} node{'s are' if enough > 1 else ' is'} large enough and in use: it "
        f"starts when that much is free. Add {resource}, or {less}."
    )


def _selector(wants: Wants, subject: Subject) -> str:
    written = [name for name in PLACING if getattr(subject.instance, name)]
    mend = f"mend {subject.field(*written or PLACING)}"
    if not wants.node_selector:
        return f"Label a node as the pod's affinity wants it, or {mend}."
    asked = [f"{key}={value}" for key, value in sorted(wants.node_selector.items())]
    how = f" (`kubectl label node NAME {' '.join(asked)}`)" if len(asked) <= MAX_NAMED else ""
    return f"Label a node with {_some(asked)}{how}, or {mend}."


def _taints(text: str, wants: Wants, subject: Subject) -> str:
    mend = subject.field("tolerations")
    found = _untolerated(wants, subject.nodes)
    if not found and (match := re.search(r"taint \{(\S+): ([^}]*)\}", text)):
        found = {"": Taint(match[1], match[2])}
    if not found:
        return f"Remove the taint, or add a toleration to {mend}."
    named = _some([f"{name} has {taint}" if name else str(taint) for name, taint in found.items()])
    first = next(iter(found.values()))
    if first.key.startswith("node.kubernetes.io/"):
        return f"Nodes are not fit for pods at present ({named}); `kubectl describe node` says why."
    return f"Remove the taint ({named}), or add a toleration for {first} to {mend}."


def _some(words: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(words) - MAX_NAMED} more" if len(words) > MAX_NAMED else ""
    return ", ".join(words[:MAX_NAMED]) + more


def _untolerated(wants: Wants, nodes: Nodes) -> dict[str, Taint]:
    """The first taint of each node that keeps the pod away; cordons have a sentence of their own."""
    found: dict[str, Taint] = {}
    for name, node in sorted((nodes or {}).items()):
        for taint in node.taints:
            kept_away = taint.effect in BLOCKING and taint.key != CORDON
            if kept_away and not any(toleration.tolerates(taint) for toleration in wants.tolerations):
                found.setdefault(name, taint)
    return found


def _cordoned(nodes: Nodes) -> str:
    names = sorted(name for name, node in (nodes or {}).items() if any(taint.key == CORDON for taint in node.taints))
    if not names:
        return "Nodes are cordoned; `kubectl get nodes` shows which, `kubectl uncordon NAME` opens one again."
    return f"Cordoned: {', '.join(names[:MAX_NAMED])}; `kubectl uncordon {names[0]}` opens it again."
