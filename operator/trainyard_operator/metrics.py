"""Prometheus metrics of the operator. Labels are kinds, states and codes: never a name that a user chooses."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15)


class Metrics:
    """One registry per process, made here and not at import, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leader = Gauge("trainyard_leader", "1 on the replica that decides", registry=self.registry)
        self.reconcile_seconds = Histogram(
            "trainyard_reconcile_seconds", "Duration of one look", ["kind"], buckets=_SECONDS, registry=self.registry
        )
        self.reconcile_errors = Counter(
            "trainyard_reconcile_errors", "Looks that failed and were retried", ["kind"], registry=self.registry
        )
        self.actions = Counter(
            "trainyard_actions", "What the operator did to the cluster", ["action"], registry=self.registry
        )
        self.refusals = Counter(
            "trainyard_refusals", "Actions that the cluster refused", ["action"], registry=self.registry
        )
        self.queue_length = Gauge("trainyard_queue_length", "Keys that wait for a worker", registry=self.registry)
        self.queue_oldest = Gauge(
            "trainyard_queue_oldest_seconds", "How long the first of them has waited", registry=self.registry
        )
        self.loop_lag = Gauge("trainyard_loop_lag_seconds", "Delay of the event loop", registry=self.registry)
        self.watch_silence = Gauge(
            "trainyard_watch_silence_seconds",
            "Time since a watch's last sign of life",
            ["kind"],
            registry=self.registry,
        )
        self.resync_corrections = Counter(
            "trainyard_resync_corrections", "Changes that only the periodic list showed", registry=self.registry
        )
        self.jobs = Gauge("trainyard_jobs", "TrainingJobs by state", ["state"], registry=self.registry)
        self.reports = Counter("trainyard_reports", "Answers of the intake", ["status"], registry=self.registry)
        self.report_seconds = Histogram(
            "trainyard_report_seconds", "Time to take a report", buckets=_SECONDS, registry=self.registry
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)
