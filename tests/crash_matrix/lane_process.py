"""The process of a worker's lane, with fault points."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

if __name__ == "__main__":
    from tests.crash_matrix.points import watch
    from workers.lane.process import main

    watch("worker")
    main()
