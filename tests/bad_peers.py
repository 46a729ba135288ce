"""What somebody might send to the control socket who is no client of ours, or has not its key."""

import os

import msgspec

from forgellm.control import frames, handshake
from forgellm.control.frames import Hello


def bad_peers() -> dict[str, bytes]:
    skewed = msgspec.msgpack.encode({"type": "hello", "protocol": 7, "release": "9.9", "nonce": b"?"})
    hello = frames.encode(Hello(frames.PROTOCOL, "1", bytes(handshake.NONCE_BYTES)))
    return {
        "closes at once": b"",
        "closes in its first frame": hello[:9],
        "speaks HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "boasts": b"\x7f\xff\xff\xff",
        "sends garbage": os.urandom(4096),
        "speaks another version": len(skewed).to_bytes(4, "big") + skewed,
        "sends a short nonce": frames.encode(Hello(frames.PROTOCOL, "1", b"")),
        "calls before it has proved itself": frames.encode(frames.Status()),
        "sends a wrong proof": hello + frames.encode(frames.Proof(bytes(32))),
        "replays another's proof": hello + frames.encode(frames.Proof(os.urandom(32))),
    }
