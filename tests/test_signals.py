"""What a signal to all processes of a run must not end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from multiprocessing import resource_tracker
from pathlib import Path
from bertchen.signals import stop_signals

stop_signals.listen()
status = Path(f"/proc/{resource_tracker._resource_tracker._pid}/status").read_text()
fields = dict(line.split(":", 1) for line in status.splitlines())
print(int(fields["SigBlk"], 16) | int(fields["SigIgn"], 16))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_shared_memory_is_given_back_after_a_signal_to_all_processes() -> None:
    """The process that does so hears neither of the two."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=True)
    deaf = int(done.stdout)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        assert deaf & 1 << number - 1, number.name
