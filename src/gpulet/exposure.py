"""What a server may offer beyond this machine: loopback is the default, and more must be asked for."""

from ipaddress import ip_address

from gpulet.config import ServerSection
from gpulet.errors import ConfigError


def refuse_exposed(server: ServerSection) -> None:
    """Raises `ConfigError` for an address that others reach, where anybody could use what it offers."""
    if server.insecure or _is_loopback(server.host):
        return
    offered = {
        "without a token (token_file)": not server.token_file,
        "with shared memory (allow_client_shm)": server.allow_client_shm,
        "with loads and unloads (model_control)": server.model_control == "explicit",
    }
    for what, is_so in offered.items():
        if is_so:
            msg = f"[server] host = {server.host!r} is not loopback, and must not be bound {what}"
            raise ConfigError(msg + " unless insecure = true or --insecure says so")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
