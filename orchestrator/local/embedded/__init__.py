"""Private PostgreSQL and Valkey for one machine: real servers from wheels, no container, no system package.

    with EmbeddedServers(default_data_dir()) as servers:
        addresses = servers.start()

They listen on Unix sockets only, belong to one data folder, and end with the process that started them. Fault
tests reach the individual servers as `servers.postgres` and `servers.valkey` (`pid`, `running`, `kill()`,
`start()`, `stop()`). Tests keep their data folders in `scratch_dir()`.
"""

from orchestrator.local.embedded.scratch import scratch_dir
from orchestrator.local.embedded.servers import Addresses, EmbeddedServers

__all__ = ["Addresses", "EmbeddedServers", "scratch_dir"]
