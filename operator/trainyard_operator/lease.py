"""Leader election by a Lease: at most one replica decides.

As in client-go, clocks are never compared between machines: a lease is stale when it has not changed for its duration by
this replica's own clock. Who cannot renew in time stops before another one may start; a paused process that wakes up late
finds its writes refused by the status protocol, so that correctness never rests on the lease alone.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from trainyard_operator.cluster import LEASES, Cluster, ClusterError, ConflictError, NotFoundError, Object

logger = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """Another replica leads now, or may lead: this one must end at once."""


class Lease:
    """The Lease `name`, as seen and held by the replica `identity`.

    A replica that finds its own identity in the lease takes it at once: the identity is the pod's name, and the containers
    of one pod never overlap, so the holder was this pod's container before its restart.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        *,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`seconds` is how long a lease that is not renewed keeps others away."""
        self._clock, self._sleep = clock, sleep
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self._retry = seconds / 5
        # Whoever waits looks more often: a renewal that is seen late delays the take-over by as much.
        self._look = min(self._retry, 1.0)
        self._observed: tuple[str, float] = ("", 0.0)  # resourceVersion, and when it was first seen by our clock
        self._renewed = 0.0
        self.tried = asyncio.Event()
        """Set once it is known whether this replica leads from its beginning."""

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        while True:
            try:
                if await self._try():
                    logger.info("%s leads now", self._identity)
                    return
            except ClusterError as error:
                logger.warning("lease %s/%s: %s", self._namespace, self._name, error)
            finally:
                self.tried.set()
            await self._sleep(min(self._look, self._due()))

    async def hold(self) -> None:
        """Renew for ever. Raises `LeaseLostError` when somebody else has it, or when it could not be renewed in time."""
        while True:
            await self._sleep(self._retry)
            deadline = self._deadline
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(deadline - self._clock(), 0.01)):
                    if await self._try():
                        continue
                raise LeaseLostError(f"lease {self._namespace}/{self._name} was taken by another replica")
            except (TimeoutError, ClusterError) as error:
                if self._clock() >= deadline:
                    raise LeaseLostError(
                        f"lease {self._namespace}/{self._name} could not be renewed: {error}"
                    ) from error
                logger.warning("lease %s/%s: %s", self._namespace, self._name, error)

    @property
    def _deadline(self) -> float:
        # A third of the time is left as a margin, so that this replica has ended when the next one may start.
        return self._renewed + self._seconds * 2 / 3

    def holds(self) -> bool:
        """Whether this replica surely leads now. A process that was paused finds out before it writes: the clock went on."""
        return self._clock() < self._deadline

    async def release(self) -> None:
        """Let the next replica lead at once. Called when this one has stopped writing."""
        try:
            lease = await self._cluster.get(LEASES, self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._now()}
                await self._cluster.replace(LEASES, lease)
        except ClusterError as error:
            logger.info("lease %s/%s was not released: %s", self._namespace, self._name, error)

    async def _try(self) -> bool:
        """Take or renew the lease; whether this replica holds it now."""
        began = self._clock()
        try:
            lease = await self._cluster.get(LEASES, self._namespace, self._name)
        except NotFoundError:
            lease = None
        try:
            if lease is None:
                await self._cluster.create(LEASES, self._body())
            else:
                self._observe(lease["metadata"]["resourceVersion"])
                holder = lease["spec"].get("holderIdentity")
                if holder and holder != self._identity and not self._stale(lease):
                    return False
                await self._cluster.replace(LEASES, self._taken(lease, holder))
        except ConflictError:
            return False  # another replica was faster
        # Counted from before the request: the lease may have been written at any moment of it.
        self._renewed = began
        return True

    def _observe(self, version: str) -> None:
        if self._observed[0] != version:
            self._observed = (version, self._clock())

    def _stale(self, lease: Object) -> bool:
        return self._clock() - self._observed[1] >= self._duration(lease)

    def _due(self) -> float:
        """Seconds until the lease that was seen last may be stale."""
        version, since = self._observed
        return max(since + self._seconds - self._clock(), 0.05) if version else self._retry

    def _duration(self, lease: Object) -> float:
        # The field holds whole seconds; a shorter own duration would let two lead.
        return max(float(lease["spec"].get("leaseDurationSeconds") or 0), 0.0)

    def _body(self) -> Object:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": self._namespace, "name": self._name},
            "spec": self._spec(self._now(), 0),
        }

    def _taken(self, lease: Object, holder: str | None) -> Object:
        spec = lease["spec"]
        transitions = spec.get("leaseTransitions") or 0
        if holder == self._identity:
            return lease | {"spec": self._spec(spec.get("acquireTime") or self._now(), transitions)}
        return lease | {"spec": self._spec(self._now(), transitions + 1)}

    def _spec(self, acquired: str, transitions: int) -> Object:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._seconds)),
            "acquireTime": acquired,
            "renewTime": self._now(),
            "leaseTransitions": transitions,
        }

    def _now(self) -> str:
        return self._cluster.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
