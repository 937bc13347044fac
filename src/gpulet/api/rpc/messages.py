"""The messages of the protocol and of gRPC's health service."""

from gpulet.modelconfig import CONFIG_PROTO
from gpulet.protos import load

MESSAGES = load(CONFIG_PROTO, "api/rpc/inference.proto")
HEALTH = load("api/rpc/health.proto")
