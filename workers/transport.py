"""Redis transport of a worker's consumer: kombu and Celery receive only checked messages.

kombu and Celery trust their broker: a header of the wrong type or a malformed item ends the worker's main process, and
then that of the next worker. Here `workers.run_messages` or `workers.remote_control` reads every item first; refused
items are set aside.
"""

from __future__ import annotations

from typing import Any

import redis
import structlog
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str

from shared.tasks.envelopes import Foreign, queue_of
from shared.tasks.set_aside import set_aside
from workers import remote_control, run_messages

log = structlog.get_logger(__name__)

AWAY = (redis.RedisError, OSError)


class Client(redis.Redis):
    """Redis client that checks the items that it takes from a queue."""

    def parse_response(self, connection: Any, command_name: str | bytes, **options: Any) -> Any:
        """Return Redis's answer; for a refused item, the same as for an empty queue."""
        answer = super().parse_response(connection, command_name, **options)
        if command_name != "BRPOP" or not answer:
            return answer
        key, item = answer
        queue = queue_of(key.decode())
        try:
            return key, run_messages.write(run_messages.read(item), queue)
        except Foreign as why:
            set_aside(queue, item, str(why))
            return None


class Held(virtual.QoS):
    """Messages that this worker has taken and not finished, in memory only.

    kombu's own class records them in Redis and redelivers them after a time-out. PostgreSQL does that here, sooner, and
    records in Redis could be forged.
    """

    def restore_unacked(self) -> list[Any]:
        """Put them back in their queue when the worker stops. Any that are left behind are published again."""
        self._flush()
        try:
            while self._delivered:
                self.channel._restore(self._delivered.popitem()[1])
        except AWAY as error:
            log.warning("not_put_back", messages=len(self._delivered) + 1, reason=str(error)[:300])
            self._delivered.clear()
        return []


class Channel(kombu_redis.Channel):
    """Channel that checks messages from queues and subscriptions."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.QoS: Any = Held

    def _get_client(self) -> type[Client]:
        super()._get_client()  # checks redis-py's version
        return Client

    def _handle_message(self, client: Any, response: Any) -> dict[str, Any]:
        """Return a message of a subscription. kombu ignores a message without data."""
        payload: dict[str, Any] = super()._handle_message(client, response)
        if bytes_to_str(payload["type"]) in ("message", "pmessage"):
            try:
                payload["data"] = remote_control.write(remote_control.read(payload["data"]))
            except Foreign as why:
                set_aside(remote_control.QUEUE, payload["data"], str(why))
                payload["data"] = b""
        return payload


class Transport(kombu_redis.Transport):
    """Transport for `kombu.Connection.transport_cls`."""

    Channel = Channel
