"""The lane's process. Waiting is switched to greenlets before anything else is imported.

    python -P workers/lane/__main__.py SOCKET PULSE PARENT WORKER-ID FOLDER…

PARENT is the main process; the folders are the ones from which it imports.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path[:] = sys.argv[5:]

    from gevent import monkey

    monkey.patch_all()

    from shared.imports import without_collector

    with without_collector():
        from workers.lane.process import main

    main()
