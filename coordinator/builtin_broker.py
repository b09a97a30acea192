"""The pip-only broker: amqtt in a process of its own (``python -m fedmpq.coordinator.builtin_broker HOST PORT NAME``).

MQTT 3.1.1, no persistence. NAME is ignored; it lets the parent recognise the process.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from fedmpq.errors import MissingExtraError


async def serve(host: str, port: int) -> None:
    """Runs until the process ends."""
    try:
        from amqtt.broker import Broker
    except ModuleNotFoundError:
        raise MissingExtraError("amqtt", "coordinator") from None
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}", "max_connections": 1000}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = Broker(config)
    await broker.start()
    await asyncio.Event().wait()


def main() -> None:
    """Entry point of the child process."""
    logging.basicConfig(level=logging.WARNING)
    host, port = sys.argv[1], int(sys.argv[2])
    asyncio.run(serve(host, port))


if __name__ == "__main__":
    main()
