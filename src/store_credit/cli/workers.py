"""Running uvicorn with one worker or several."""

from __future__ import annotations

import contextlib
import logging
import sys
from socket import socket

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

GRACE_SECONDS = 15
"""How long running requests may take to finish once the service is told to stop."""

KEEP_ALIVE_SECONDS = 75
"""Longer than the proxies before us keep a connection, so that they close it and not we."""

LISTENERS = 32
"""The event loop takes no more than one new connection from each in a turn, and in an overload a turn takes
a tenth of a second: with one listener, whoever connects then would wait for as long as it lasts."""


class Workers(Multiprocess):
    """Several workers, whose parent lets go of the port when it is told to stop.

    As long as it listens, new connections are taken on and never answered, while the workers finish.
    """

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()
        super().terminate_all()


def listeners(config: uvicorn.Config) -> list[socket]:
    """The port of the configuration, as often as it is listened on.

    It listens at once: the event loop would not tell that somebody else has come before it. When the port
    is taken, the process ends.
    """
    first = config.bind_socket()
    try:
        first.listen(config.backlog)
    except OSError as error:
        logging.getLogger("uvicorn.error").error(error)
        sys.exit(STARTUP_FAILURE)
    return [first, *(first.dup() for _ in range(LISTENERS - 1))]


def run(factory: str, host: str, port: int, workers: int) -> None:
    """Serve the application that the factory makes, until told to stop.

    As `uvicorn.run` does, but it takes many new connections at once, and refuses them once it is to stop.
    """
    config = uvicorn.Config(
        factory,
        factory=True,
        host=host,
        port=port,
        workers=workers,
        loop="uvloop",
        http="store_credit.protocol:BoundedProtocol",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=True,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    sockets = listeners(config)
    if workers > 1:
        Workers(config, sockets=sockets).run()
        return
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=sockets)
    if not server.started:
        sys.exit(STARTUP_FAILURE)
