import os
import subprocess
import sys

from benchmarks.processes import Processes, command_line

SPIN = "import time\nwhile time.process_time() < 0.2: pass\n"


def test_tree_counts_a_child_that_has_ended() -> None:
    before = Processes().tree(os.getpid())
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert Processes().tree(os.getpid()) - before >= 0.15


def test_living_child_counts_below_its_parent_and_not_as_its_own() -> None:
    own, below = Processes().own(os.getpid()), Processes().below(os.getpid())
    with subprocess.Popen([sys.executable, "-c", SPIN + "print(flush=True)\ninput()"], stdin=-1, stdout=-1) as child:
        assert child.stdout
        child.stdout.readline()
        processes = Processes()
        assert processes.own(child.pid) >= 0.15
        assert processes.below(os.getpid()) - below >= 0.15
        assert processes.below(os.getpid(), lambda pid: pid != child.pid) - below < 0.15
        assert processes.own(os.getpid()) - own < 0.15
        child.communicate(b"\n")


def test_ended_process_has_no_command_line() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert command_line(child.pid) == ""
    assert "python" in command_line(os.getpid())
