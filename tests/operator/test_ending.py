"""Ending: what goes wrong for good ends the process at once, whatever else would not end."""

import subprocess
import sys
import textwrap


def ended(program: str) -> subprocess.CompletedProcess[str]:
    """The end of a process that runs `program`; one that stays raises TimeoutExpired."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_lost_lease_ends_a_process_whose_other_tasks_take_no_cancellation():
    end = ended("""
        import asyncio, logging
        from trainyard_operator.__main__ import begin
        from trainyard_operator.lease import LeaseLostError

        async def stubborn():
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass

        async def lease():
            raise LeaseLostError("lease default/x was taken by another replica")

        async def main():
            async with asyncio.TaskGroup() as group:
                begin(group, stubborn=stubborn())
                await asyncio.sleep(0)
                begin(group, lease=lease())

        logging.basicConfig()
        asyncio.run(main())
    """)
    assert end.returncode == 1
    assert "ending: LeaseLostError: lease default/x was taken by another replica" in end.stderr


def test_a_loop_that_is_stuck_ends_the_process_and_shows_where():
    end = ended("""
        import asyncio, threading
        from trainyard_operator import probes
        from trainyard_operator.metrics import Metrics

        async def stuck():
            threading.Event().wait()

        async def main():
            beat = asyncio.create_task(probes.Heartbeat(Metrics()).run())
            await asyncio.sleep(0)
            await stuck()

        probes.STUCK_SECONDS = 0.2
        asyncio.run(main())
    """)
    assert end.returncode == 1
    assert "in stuck" in end.stderr
