"""One exception class per exit code of the trainer.

Raised anywhere below `__main__`, caught only there. The message is a sentence for the person who can act: what is wrong,
where, what to do. `reason` is one word for programs; it becomes `Result.reason`.
"""

from typing import ClassVar

from trainyard_api.report import RANK_LOST, ExitCode


class TrainerError(Exception):
    """An end with a documented exit code."""

    exit_code: ClassVar[ExitCode] = ExitCode.ERROR
    default_reason: ClassVar[str] = "Error"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason


class BadSpec(TrainerError):
    """What was asked for contradicts itself; never retried."""

    exit_code = ExitCode.BAD_SPEC
    default_reason = "InvalidSpec"


class BadData(TrainerError):
    """The dataset cannot be trained on as it is; never retried. The message names file and line where there is one."""

    exit_code = ExitCode.BAD_DATA
    default_reason = "InvalidData"


class StorageUnreachable(TrainerError):
    """Storage did not answer after long retries; another attempt may help."""

    exit_code = ExitCode.STORAGE_UNREACHABLE
    default_reason = "StorageUnreachable"


class DiskFull(TrainerError):
    """A local disk is full or cannot be written; the message has the path and the bytes needed."""

    exit_code = ExitCode.DISK_FULL
    default_reason = "DiskFull"


class StorageRefused(TrainerError):
    """Storage answered no: credentials, bucket, object or rights; never retried."""

    exit_code = ExitCode.STORAGE_REFUSED
    default_reason = "StorageDenied"


class Interrupted(TrainerError):
    """The stop flag was set; the next attempt goes on."""

    exit_code = ExitCode.INTERRUPTED
    default_reason = "Interrupted"


class GPUOutOfMemory(TrainerError):
    """`SMALLER_PARTS` as reason: all processes of the training could begin again with a batch in twice as many parts."""

    SMALLER_PARTS: ClassVar[str] = "BatchTooLarge"
    exit_code = ExitCode.GPU_OUT_OF_MEMORY
    default_reason = "OutOfMemory"


class NothingInTime(TrainerError):
    """`maxDurationSeconds` is over and there is no usable checkpoint."""

    exit_code = ExitCode.NOTHING_IN_TIME
    default_reason = "TimedOut"


class RankLost(TrainerError):
    """Another process of the training is gone, so that this one cannot go on; what happened is said by the other one."""

    default_reason = RANK_LOST


class VersionTaken(TrainerError):
    """Storage already has this version; `highest` is the highest one there."""

    exit_code = ExitCode.VERSION_TAKEN
    default_reason = "VersionTaken"

    def __init__(self, message: str, *, highest: int) -> None:
        super().__init__(message)
        self.highest = highest


class GPUMissing(TrainerError):
    """A GPU was asked for and none is visible; the message names node and driver."""

    exit_code = ExitCode.GPU_MISSING
    default_reason = "Refused"
