"""Which TLS certificates are trusted, and which are presented: one `ssl.SSLContext` for each pair of settings."""

from __future__ import annotations

import os
import ssl
import warnings
from collections.abc import Mapping

from certifi import where
from urllib3.util.ssl_ import create_urllib3_context

from perfkit.errors import ConfigError

ClientCert = str | tuple[str, str]

SYSTEM = "system"  # as a bundle: the certificates that the operating system trusts


def environment_bundle(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The PEM file or directory that the environment wants trusted instead of certifi's, and the variable's name.

    Those that requests reads come first, then OpenSSL's (SSL_CTX_load_verify_locations(3)).
    """
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        if path := environ.get(name):
            return path, name
    return None


def make_context(
    verify: bool | str, cert: ClientCert | None, *, setting: str = "verify", cert_setting: str = "cert"
) -> ssl.SSLContext:
    """Make a TLS context. Parsing a bundle takes some 15 ms: make one for all connections.

    Args:
        verify: True trusts certifi's certificates, False any; else a PEM file, a `c_rehash` directory, or `system`.
        cert: client certificate: a PEM file that includes its key, or both files.
        setting, cert_setting: where they come from, for errors.

    Raises:
        ConfigError: a file cannot be read, or has no certificate in it; `system` without truststore installed.
    """
    if verify == SYSTEM:
        context = _system_context()
    else:
        context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if verify else ssl.CERT_NONE)
        if verify:
            _load(context, where() if verify is True else str(verify), setting)
        else:
            context.check_hostname = False
            warnings.warn("TLS certificate verification is disabled", RuntimeWarning, stacklevel=2)
    if cert is not None:
        files = (cert,) if isinstance(cert, str) else cert
        for path in files:
            _readable(path, cert_setting)
        try:
            context.load_cert_chain(*files)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{cert_setting}: {' and '.join(files)} cannot be used: {_reason(error)}") from error
    return context


def _system_context() -> ssl.SSLContext:
    try:
        import truststore
    except ImportError:
        raise ConfigError("ca_bundle='system' needs truststore: pip install 'perfkit[system-trust]'") from None
    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _load(context: ssl.SSLContext, path: str, setting: str) -> None:
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        context.load_verify_locations(capath=path)
        return
    _readable(path, setting)
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting}: {path} holds no certificates that can be used: {_reason(error)}") from error


def _readable(path: str, setting: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        problem = "does not exist" if missing else f"cannot be read: {error.strerror}"
        raise ConfigError(f"{setting}: the certificate file {path} {problem}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
