"""A server's certificate for both protocols."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpulet.errors import ConfigError

_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2: what HTTP/2 allows (RFC 9113, 9.2.2)


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate chain and its key: PEM files, which fit each other."""

    certificate: Path
    key: Path

    def context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """To serve these protocols, or HTTP/1.1; raises `ConfigError` that names the files."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            msg = f"[server] tls_certificate {self.certificate} and tls_key {self.key} cannot be used: {error}"
            raise ConfigError(msg) from None
        if alpn:
            context.set_alpn_protocols(list(alpn))
            context.set_ciphers(_CIPHERS)
        return context
