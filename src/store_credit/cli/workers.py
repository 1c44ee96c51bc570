"""Running uvicorn with one worker or several."""

from __future__ import annotations

import contextlib
import logging
import sys
from socket import socket
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

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


def run(app: str, *, workers: int, **options: Any) -> None:
    """`uvicorn.run`, which takes many new connections at once, and refuses them once it is told to stop."""
    config = uvicorn.Config(app, workers=workers, **options)
    sockets = listeners(config)
    if workers > 1:
        Workers(config, sockets=sockets).run()
        return
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=sockets)
    if not server.started:
        sys.exit(STARTUP_FAILURE)
