"""What a stranger can put on a connection: byte sequences on which HTTP servers are known to disagree."""

from collections.abc import Sequence

import msgspec

HOST = b"manta.example"  #: where a probe's own name stands, so that what is seen can be laid to it
KEY = b"Authorization: Bearer manta_0\r\n"
HEAD = b"Host: manta.example\r\n" + KEY
POST = b"POST /v1/x HTTP/1.1\r\n" + HEAD
GET = b"GET /v1/x HTTP/1.1\r\n" + HEAD
CLOSE = b"Connection: close\r\n"
SMUGGLED = b"GET /admin HTTP/1.1\r\n" + HEAD + CLOSE + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


class Probe(msgspec.Struct, frozen=True):
    """`app`, `envoy`, `haproxy`: how many requests each lets through, to itself or to what is behind it."""

    name: str
    sent: bytes
    app: int = 0
    envoy: int = 0
    haproxy: int = 0


def _headers(count: int) -> bytes:
    return b"".join(b"x-%d: a\r\n" % index for index in range(count))


PROBES: Sequence[Probe] = [
    Probe("one request", GET + CLOSE + b"\r\n", 1, 1, 1),
    Probe("two requests", GET + b"\r\n" + GET + CLOSE + b"\r\n", 2, 2, 2),
    Probe("one with a body in chunks", POST + CHUNKED + CLOSE + b"\r\n3\r\nabc\r\n0\r\n\r\n", 1, 1, 1),
    Probe("length and chunks", POST + b"Content-Length: 6\r\n" + CHUNKED + b"\r\n0\r\n\r\nG" + SMUGGLED, 0, 0, 1),
    Probe("chunks and length", POST + CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\n" + SMUGGLED, 0, 0, 1),
    Probe("two equal lengths", POST + b"Content-Length: 3\r\nContent-Length: 3\r\n" + CLOSE + b"\r\nabc", 0, 0, 1),
    Probe("two lengths", POST + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED),
    Probe("a list of lengths", POST + b"Content-Length: 3, 3\r\n" + CLOSE + b"\r\nabc", 0, 0, 1),
    Probe("a length with a sign", POST + b"Content-Length: +3\r\n" + CLOSE + b"\r\nabc"),
    Probe("a negative length", POST + b"Content-Length: -1\r\n" + CLOSE + b"\r\nabc"),
    Probe("a hexadecimal length", POST + b"Content-Length: 0x3\r\n" + CLOSE + b"\r\nabc"),
    Probe("an unknown coding", POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    Probe("chunked is not last", POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED),
    Probe("a tab before chunked", POST + b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    Probe("chunks in HTTP/1.0", b"POST /v1/x HTTP/1.0\r\n" + HEAD + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED, 1, 0, 1),
    Probe("a bad chunk", POST + CHUNKED + CLOSE + b"\r\nzz\r\nabc\r\n0\r\n\r\n"),
    Probe("a chunk beyond all numbers", POST + CHUNKED + CLOSE + b"\r\n10000000000000003\r\nabc\r\n0\r\n\r\n"),
    Probe("a chunk longer than it says", POST + CHUNKED + CLOSE + b"\r\n3\r\nabcdef\r\n0\r\n\r\n"),
    Probe("a chunk extension with a bare LF", POST + CHUNKED + b"\r\n3;a\nabc\r\n0\r\n\r\n" + SMUGGLED, 0, 0, 2),
    Probe("a folded header", GET + b"X-A: a\r\n  b\r\n" + CLOSE + b"\r\n", 0, 1, 1),
    Probe("bare LF", (GET + CLOSE + b"\r\n").replace(b"\r\n", b"\n"), 0, 1, 1),
    Probe("bare CR in a value", GET + b"X-A: a\rb\r\n" + CLOSE + b"\r\n", 0, 1, 0),
    Probe("NUL in a value", GET + b"X-A: a\x00b\r\n" + CLOSE + b"\r\n"),
    Probe("a space before the colon", POST + b"Content-Length : 3\r\n" + CLOSE + b"\r\nabc"),
    Probe("no host", b"GET /v1/x HTTP/1.1\r\n" + KEY + CLOSE + b"\r\n"),
    Probe("two hosts", GET + b"Host: b\r\n" + CLOSE + b"\r\n"),
    Probe("a header of 100 KB", GET + b"X-A: " + b"a" * 100_000 + b"\r\n" + CLOSE + b"\r\n"),
    Probe("2,000 headers", GET + _headers(2000) + CLOSE + b"\r\n"),
    Probe("an escaped slash", b"GET /v1/..%2fadmin HTTP/1.1\r\n" + HEAD + CLOSE + b"\r\n"),
    Probe("dots in the path", b"GET /v1/../admin HTTP/1.1\r\n" + HEAD + CLOSE + b"\r\n", 0, 1, 1),
    Probe("an underscore in a name", POST + b"Content_Length: 3\r\n" + CLOSE + b"\r\n", 1),
    Probe("a whole URL as target", b"GET http://manta.example/v1/x HTTP/1.1\r\n" + HEAD + CLOSE + b"\r\n", 1, 1, 1),
    Probe("HTTP/2 without its handshake", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
]
