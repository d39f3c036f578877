"""Processes that read images, when the first one is gone."""

import subprocess
import sys

import pytest

# The first connection is lost before it has said who it is, as where the first process is killed while it fetches a batch.
LOSE_A_CONNECTION = """
import os, socket
from multiprocessing import resource_sharer
from msrn.processes import leave_stopping_to_the_first
if {is_worker}:
    leave_stopping_to_the_first(0)
given = resource_sharer.DupFd(1)
with socket.socket(socket.AF_UNIX) as lost:
    lost.connect(resource_sharer._resource_sharer._address)
os.close(given.detach())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the connections by which Linux hands tensors over")
@pytest.mark.parametrize("is_worker", [True, False])
def test_a_worker_says_nothing_of_a_connection_that_the_first_process_lost(is_worker: bool) -> None:
    program = LOSE_A_CONNECTION.format(is_worker=is_worker)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert ("Traceback" in done.stderr) is not is_worker


def test_a_worker_shows_any_other_error() -> None:
    program = "from msrn.processes import leave_stopping_to_the_first as begin; begin(0); raise ValueError('odd')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ValueError: odd" in done.stderr
