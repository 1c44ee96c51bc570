"""Running uvicorn with one worker or several."""

from __future__ import annotations

from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess


class Workers(Multiprocess):
    """Several workers, whose parent lets go of the port when it is told to stop.

    As long as it listens, new connections are taken on and never answered, while the workers finish.
    """

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()
        super().terminate_all()


def run(app: str, *, workers: int, **options: Any) -> None:
    """`uvicorn.run`, which with several workers refuses new connections once it is told to stop."""
    if workers == 1:
        uvicorn.run(app, **options)
        return
    config = uvicorn.Config(app, workers=workers, **options)
    Workers(config, sockets=[config.bind_socket()]).run()
