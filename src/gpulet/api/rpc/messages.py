"""The messages of the protocol and of gRPC's health service."""

from gpulet.protos import load

MESSAGES = load("api/rpc/inference.proto")
HEALTH = load("api/rpc/health.proto")
