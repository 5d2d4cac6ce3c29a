"""Answers whatever comes with the same bytes: what the load generator's own limit is measured against."""

from __future__ import annotations

import select
import socket
import sys

_BODY = b"x" * 300
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


def main(port: int) -> None:
    """Answer until it is ended."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for file, _ in epoll.poll():
            if file == listener.fileno():
                connection, _ = listener.accept()
                connections[connection.fileno()] = connection
                epoll.register(connection.fileno(), select.EPOLLIN)
                continue
            connection = connections[file]
            try:
                # The generator's requests are small and come one at a time.
                if connection.recv(65536):
                    connection.sendall(_ANSWER)
                    continue
            except OSError:
                pass
            del connections[file]
            connection.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
