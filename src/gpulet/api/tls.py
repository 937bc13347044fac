"""A server's certificate for both protocols."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from gpulet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate chain and its key: PEM files, which fit each other."""

    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """For HTTP; raises `ConfigError` that names the files."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            msg = f"[server] tls_certificate {self.certificate} and tls_key {self.key} cannot be used: {error}"
            raise ConfigError(msg) from None
        return context
