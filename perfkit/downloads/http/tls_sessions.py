"""TLS sessions are resumed: a further connection to a server needs no certificate, and over TLS 1.2 one round trip
less (RFC 5246 section 7.3).
"""

from __future__ import annotations

import ssl

_HOSTS = 256  # whose sessions are kept


def resume_sessions(context: ssl.SSLContext) -> None:
    """Have the connections of this context resume sessions of earlier ones to the same host.

    What was verified then is not verified again, so no session is shared between contexts. A server that does not know
    the session, such as one at another port, makes a whole handshake of it (RFC 5246 section 7.3, RFC 8446 section
    2.2).
    """
    sessions: dict[str, ssl.SSLSession] = {}

    class Socket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            host = self.server_hostname or ""
            if (session := sessions.get(host)) is not None:
                self.session = session
            try:
                super().do_handshake(block)
            except BaseException:
                sessions.pop(host, None)  # perhaps because of it
                raise
            if self.version() == "TLSv1.2":
                self._keep()
            else:
                sessions.pop(host, None)  # a ticket of TLS 1.3 should be used once (RFC 8446 appendix C.4)

        def close(self) -> None:
            if self.version() == "TLSv1.3":  # its tickets come after the handshake
                self._keep()
            super().close()

        def _keep(self) -> None:
            session = self.session
            if self.server_hostname and session is not None and session.has_ticket:
                if len(sessions) >= _HOSTS:
                    sessions.clear()
                sessions[self.server_hostname] = session

    context.options &= ~ssl.OP_NO_TICKET  # urllib3 asks for none over TLS 1.2, where most servers know no other way
    context.sslsocket_class = Socket
