"""Which TLS certificates are trusted, and which are presented: one `ssl.SSLContext` for each pair of settings."""

from __future__ import annotations

import os
import ssl
import warnings
from collections.abc import Callable

from certifi import where
from urllib3.util.ssl_ import create_urllib3_context

from perfkit.config import Config
from perfkit.downloads.http.tls_sessions import resume_sessions
from perfkit.errors import ConfigError

ClientCert = str | tuple[str, str]

_OF_REQUESTS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_OF_OPENSSL = ("SSL_CERT_FILE", "SSL_CERT_DIR")
SYSTEM = "system"  # as a bundle: the certificates that the operating system trusts


def find_trust(config: Config, of_session: bool | str, *, environment: bool) -> tuple[bool | str, str]:
    """`verify` for requests, and where it comes from: the settings, the environment, or else the session.

    In the environment, the variables that requests reads come first, and take precedence over the session, then those
    of OpenSSL (SSL_CTX_load_verify_locations(3)).
    """
    if config.ca_bundle:
        return config.ca_bundle, "Config.ca_bundle"
    if config.verify is not True:
        return config.verify, "Config.verify"
    variables = (*_OF_REQUESTS, *_OF_OPENSSL) if of_session is True else _OF_REQUESTS
    for name in variables if environment else ():
        if path := os.environ.get(name):
            return path, name
    return of_session, "session.verify"


def make_context(verify: bool | str, cert: ClientCert | None, setting: str, cert_setting: str) -> ssl.SSLContext:
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
    elif verify:
        context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
        path = where() if verify is True else os.path.expanduser(str(verify))
        _load(setting, context.load_verify_locations, *((None, path) if os.path.isdir(path) else (path,)))
    else:
        context = create_urllib3_context(cert_reqs=ssl.CERT_NONE)
        context.check_hostname = False
        warnings.warn("TLS certificate verification is disabled", RuntimeWarning, stacklevel=2)
    if cert is not None:
        _load(cert_setting, context.load_cert_chain, *((cert,) if isinstance(cert, str) else cert))
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # CPython 3.11.2 sets it: a body cut off would seem complete
    # truststore looks at the certificates of each handshake. Servers that ask for the client's certificate, and give
    # their sessions no context, refuse to resume (SSL_CTX_set_session_id_context(3)).
    if verify != SYSTEM and cert is None:
        resume_sessions(context)
    return context


def _system_context() -> ssl.SSLContext:
    try:
        import truststore
    except ImportError:
        raise ConfigError("ca_bundle='system' needs truststore: pip install 'perfkit[system-trust]'") from None
    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _load(setting: str, load: Callable[..., object], *places: str | None) -> None:
    paths = [path for path in places if path]
    try:
        for path in paths:
            os.stat(path)  # its error names the one of several that is missing
        load(*places)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        named = getattr(error, "filename", None) or " and ".join(paths)
        raise ConfigError(f"{setting}: {named} cannot be used as a certificate file: {reason}") from error
