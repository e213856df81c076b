"""Prometheus metrics of the operator.

Labels are kinds, states, causes and codes; the one name is that of a TrainingService (with its namespace), of which there are few.
The series of a service go with it, and beyond `MAX_SERVICES` services those to come share one, so that no label is without bound.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from trainyard_api.trainingjob import Attempt, Cause, TrainingJobStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
MAX_SERVICES = 500
OTHER = ("", "other")
"""Namespace and service of those beyond the bound, and of services that are gone."""
SERVICE = ("namespace", "service")
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15)
_LONG = (1, 2, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)


@dataclass(frozen=True)
class ServiceLoad:
    """How one TrainingService stands."""

    namespace: str
    service: str
    queued: int = 0
    oldest_seconds: float = 0.0
    running: int = 0
    capacity: int = 0


class Metrics:
    """One registry per process, made here and not at import, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._services: set[tuple[str, str]] = set()
        self._process()
        self._by_service()
        self.loads: Callable[[], Iterable[ServiceLoad]] = tuple
        """How the services stand now; asked at each scrape. Only the leader knows."""
        self.registry.register(_Loads(self))

    def _process(self) -> None:
        registry = self.registry
        self.leader = Gauge("trainyard_leader", "1 on the replica that decides", registry=registry)
        self.reconcile_seconds = Histogram(
            "trainyard_reconcile_seconds", "Duration of one look", ["kind"], buckets=_SECONDS, registry=registry
        )
        self.reconcile_errors = Counter(
            "trainyard_reconcile_errors", "Looks that failed and were retried", ["kind"], registry=registry
        )
        self.actions = Counter(
            "trainyard_actions", "What the operator did to the cluster", ["action"], registry=registry
        )
        self.refusals = Counter("trainyard_refusals", "Actions that the cluster refused", ["action"], registry=registry)
        self.queue_length = Gauge("trainyard_queue_length", "Keys that wait for a worker", registry=registry)
        self.queue_oldest = Gauge(
            "trainyard_queue_oldest_seconds", "How long the first of them has waited", registry=registry
        )
        self.loop_lag = Gauge("trainyard_loop_lag_seconds", "Delay of the event loop", registry=registry)
        self.watch_silence = Gauge(
            "trainyard_watch_silence_seconds", "Time since a watch's last sign of life", ["kind"], registry=registry
        )
        self.resync_corrections = Counter(
            "trainyard_resync_corrections", "Changes that only the periodic list showed", registry=registry
        )
        self.jobs = Gauge("trainyard_jobs", "TrainingJobs by state", ["state"], registry=registry)
        self.reports = Counter("trainyard_reports", "Answers of the intake", ["status", "reason"], registry=registry)
        self.report_seconds = Histogram(
            "trainyard_report_seconds", "Time to take a report", buckets=_SECONDS, registry=registry
        )
        self.handovers = Counter(
            "trainyard_handovers",
            "Answers to warm instances that wait for work",
            ["status", "reason"],
            registry=registry,
        )
        self.progress_writes = Counter(
            "trainyard_progress_writes",
            "Accepted reports, written or left to the next one",
            ["kind"],
            registry=registry,
        )

    def _by_service(self) -> None:
        registry = self.registry
        self.admission_seconds = Histogram(
            "trainyard_time_to_admission_seconds",
            "From waiting to an attempt",
            SERVICE,
            buckets=_LONG,
            registry=registry,
        )
        self.first_step_seconds = Histogram(
            "trainyard_time_to_first_step_seconds",
            "From an attempt's admission to its first training step",
            SERVICE,
            buckets=_LONG,
            registry=registry,
        )
        self.attempts = Counter(
            "trainyard_attempts", "Attempts that ended, by cause", [*SERVICE, "cause"], registry=registry
        )
        self.gpu_seconds = Counter(
            "trainyard_gpu_seconds",
            "GPU time of ended attempts: kept (completed, stopped), charged (failed), lost (disrupted)",
            [*SERVICE, "outcome"],
            registry=registry,
        )

    def service(self, namespace: str, name: str) -> tuple[str, str]:
        """The label values for a service that exists."""
        key = (namespace, name)
        if key in self._services or len(self._services) < MAX_SERVICES:
            self._services.add(key)
            return key
        return OTHER

    def forget_service(self, namespace: str, name: str) -> None:
        """The service is gone, and its series with it."""
        self._services.discard((namespace, name))
        for metric in (self.admission_seconds, self.first_step_seconds, self.attempts, self.gpu_seconds):
            metric.remove_by_labels({"namespace": namespace, "service": name})

    def written(self, service: tuple[str, str], gpus: int, old: TrainingJobStatus, new: TrainingJobStatus) -> None:
        """Count what one write of a job's status tells: attempts that were opened, took their first step, ended."""
        before = {(a.run, a.number): a for a in old.attempts}
        for attempt in new.attempts:
            seen = before.get((attempt.run, attempt.number))
            if seen is None and old.queued_time is not None:
                waited = (attempt.create_time - old.queued_time).total_seconds()
                self.admission_seconds.labels(*service).observe(max(0.0, waited))
            if attempt.training_start_time is not None and (seen is None or seen.training_start_time is None):
                took = (attempt.training_start_time - attempt.create_time).total_seconds()
                self.first_step_seconds.labels(*service).observe(max(0.0, took))
            if attempt.end_time is not None and (seen is None or seen.end_time is None):
                self.attempts.labels(*service, attempt.cause or Cause.ERROR).inc()
                self.gpu_seconds.labels(*service, outcome(attempt)).inc(gpus * _ran(attempt))

    def render(self) -> bytes:
        return generate_latest(self.registry)


def outcome(attempt: Attempt) -> str:
    """What became of an attempt's time: `kept`, `charged` or `lost`."""
    if attempt.charged:
        return "charged"
    kept = (Cause.COMPLETED, Cause.STOPPED, Cause.FINISHED, Cause.RESET)
    return "kept" if attempt.cause in kept else "lost"


def _ran(attempt: Attempt) -> float:
    if attempt.start_time is None or attempt.end_time is None:
        return 0.0
    return max(0.0, (attempt.end_time - attempt.start_time).total_seconds())


class _Loads(Collector):
    """Gauges that are read at the scrape, so that a service that is gone leaves nothing behind."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = {
            name: GaugeMetricFamily(f"trainyard_service_{name}", text, labels=SERVICE)
            for name, text in (
                ("queue_length", "TrainingJobs that wait for the service"),
                ("queue_oldest_seconds", "How long the first of them has waited"),
                ("running", "Executions that run"),
                ("capacity", "Executions that may run at once"),
            )
        }
        for load in list(self._metrics.loads())[:MAX_SERVICES]:
            labels = (load.namespace, load.service)
            families["queue_length"].add_metric(labels, load.queued)
            families["queue_oldest_seconds"].add_metric(labels, load.oldest_seconds)
            families["running"].add_metric(labels, load.running)
            families["capacity"].add_metric(labels, load.capacity)
        return iter(families.values())
