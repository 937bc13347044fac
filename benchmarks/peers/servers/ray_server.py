"""Ray Serve: raw bytes in and out over its HTTP proxy, `serve.batch`, instances are replicas; no dashboard, no statistics."""

import asyncio
import os
import sys
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}

import ray
from hosted import Hosted, read_site
from ray import serve
from ray._private import services
from starlette.requests import Request
from starlette.responses import Response


def deployment(hosted: Hosted) -> serve.Application:
    """One model."""

    @serve.deployment(
        name=hosted.name,
        num_replicas=hosted.instances,
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": 0.1},
    )
    class Model:
        def __init__(self) -> None:
            self._run = hosted.run()

        @serve.batch(max_batch_size=hosted.batch, batch_wait_timeout_s=hosted.wait_us / 1e6)
        async def together(self, bodies: list[bytes]) -> list[bytes]:
            if hosted.is_heavy:
                return await asyncio.to_thread(hosted.answers, self._run, bodies)
            return hosted.answers(self._run, bodies)

        async def __call__(self, request: Request) -> Response:
            body = await request.body()
            if hosted.batch > 1:
                return Response(await self.together(body))
            if hosted.is_heavy:
                return Response((await asyncio.to_thread(hosted.answers, self._run, [body]))[0])
            return Response(hosted.answers(self._run, [body])[0])

    return Model.bind()


if __name__ == "__main__":
    site = read_site()
    services.resolve_ip_for_localhost = lambda host: (
        host
    )  # Ray puts the machine's own address where it is told loopback
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(Path(sys.argv[1]).parents[1] / "r"),  # short: its sockets' paths must be
        object_store_memory=100_000_000,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": site.http})
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    for hosted in site.models:
        serve.run(
            deployment(hosted), name=hosted.name, route_prefix=f"/{hosted.name}", blocking=False, logging_config=quiet
        )
    asyncio.run(asyncio.Event().wait())
