"""The lane's process. Waiting is switched to greenlets before anything else is imported."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

if __name__ == "__main__":
    from workers.lane.process import main

    main()
