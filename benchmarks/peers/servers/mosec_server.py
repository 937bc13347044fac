"""mosec: raw bytes in and out, a route and a pool of processes for each model, its own dynamic batching."""

import os
import sys
from functools import partial

from hosted import Hosted, read_site

SITE = read_site()
sys.argv[1:] = []  # mosec reads the command line too
os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": str(SITE.http), "MOSEC_LOG_LEVEL": "warning"}
os.environ["MOSEC_CAPACITY"] = "8192"  # its default, 1024, refuses at rates that it can answer in time
if SITE.deadline_ms:
    os.environ["MOSEC_TIMEOUT"] = str(SITE.deadline_ms)

from mosec import Runtime, Server, Worker  # noqa: E402 (reads the environment)


class Bytes(Worker):
    """Bytes are neither parsed nor pickled by mosec."""

    hosted: Hosted

    def __init__(self) -> None:
        self._run = self.hosted.run()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data


class Single(Bytes):
    """One request a run."""

    def forward(self, data: bytes) -> bytes:
        return self.hosted.answers(self._run, [data])[0] if self.hosted.path else data


class Batched(Bytes):
    """Many."""

    def forward(self, data: list[bytes]) -> list[bytes]:
        return self.hosted.answers(self._run, data) if self.hosted.path else data


def worker(index: int) -> type[Worker]:
    """A class for each model; spawned processes find it by its name."""
    hosted = SITE.models[index]
    return type(
        f"Worker{index}", (Batched if hosted.batch > 1 else Single,), {"hosted": hosted, "__module__": __name__}
    )


Worker0 = worker(0)
Worker1 = worker(1) if len(SITE.models) > 1 else Worker0


def main() -> None:
    """A route for each model."""
    server = Server()
    routes = {}
    for place, hosted in enumerate(SITE.models):
        wait_ms = max(1, hosted.wait_us // 1000) if hosted.batch > 1 else 0
        make = partial(Runtime, max_batch_size=hosted.batch, max_wait_time=wait_ms, start_method="fork")
        routes[f"/{hosted.name}"] = [make((Worker0, Worker1)[place], num=hosted.instances)]
    server.register_runtime(routes)
    server.run()


if __name__ == "__main__":
    main()
