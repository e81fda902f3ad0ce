"""Lower bound for the cost of a fresh process per call: fork, page faults, exit. Run by `benchmarks/sandbox.py`.

    python -I -S benchmarks/fork_floor.py FORKS FAULTS "MODULE MODULE …"

Prints milliseconds of processor time per fork. The process has the modules of a zygote in memory; each child causes
about the given number of page faults by writing to pages that it shares with its parent, and ends.
"""

import ctypes
import gc
import importlib
import os
import resource
import sys

PAGE = os.sysconf("SC_PAGE_SIZE")


def spent(who: int) -> float:
    """Return seconds of processor time."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def run(forks: int, pages: int) -> tuple[float, int]:
    """Return milliseconds and faults per fork, if each child writes to this many pages."""
    library = ctypes.PyDLL(None)
    shared = ctypes.create_string_buffer(os.urandom(pages * PAGE or 1))
    memset, place, length = library.memset, ctypes.addressof(shared), ctypes.c_size_t(1)
    targets = [ctypes.c_void_p(place + number * PAGE) for number in range(pages)]
    gc.freeze()
    started = spent(resource.RUSAGE_SELF) + spent(resource.RUSAGE_CHILDREN)
    faults = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    for _ in range(forks):
        pid = library.fork()
        if pid == 0:
            for target in targets:
                memset(target, 1, length)
            os._exit(0)
        os.waitpid(pid, 0)
    took = spent(resource.RUSAGE_SELF) + spent(resource.RUSAGE_CHILDREN) - started
    return took / forks * 1000, (resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt - faults) // forks


def main() -> None:
    """Find the number of pages that causes the wanted number of faults, then measure."""
    forks, faults = int(sys.argv[1]), int(sys.argv[2])
    for name in sys.argv[3].split():
        importlib.import_module(name)
    _, least = run(10, 0)
    print(run(forks, max(0, faults - least))[0])


if __name__ == "__main__":
    main()
