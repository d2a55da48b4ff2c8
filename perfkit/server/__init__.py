"""The server side of HTTP: a server for development, and the evaluation of conditional and range requests."""
