"""This machine's own certificate for the link to others: made at its first use, signed by itself, known by its hash.

Its dates mean nothing, and no authority stands behind it: whoever was paired with it knows exactly this one.
"""

import datetime
import hashlib
import os
import re
import secrets
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from forgellm.errors import ConfigError
from forgellm.private_file import locked, replace

FILE_NAME = "machine.pem"
_FIRST_DAY = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)  # clocks may be wrong, and a pin does not grow old
_LAST_DAY = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # RFC 5280 4.1.2.5: no expiration


@dataclass(frozen=True)
class Certificate:
    """`path`: private key and certificate, PEM. `der`: the certificate alone."""

    path: Path
    der: bytes

    @property
    def fingerprint(self) -> bytes:
        return fingerprint(self.der)


def fingerprint(der: bytes) -> bytes:
    """The 32 bytes that a certificate is pinned by: its SHA-256."""
    return hashlib.sha256(der).digest()


def own(folder: Path) -> Certificate:
    """The certificate of this machine, made now if there is none. Raises ConfigError, Unavailable."""
    path = folder / FILE_NAME
    if not path.exists():
        with locked(path, "the certificate"):
            if not path.exists():
                replace(path, _new())
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"others may read the private key {path}; remove it, and pair again", field="machines_dir"
            )
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the certificate {path}: {error}", field="machines_dir") from error
    found = re.search(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----", text)
    if not found:
        raise ConfigError(f"there is no certificate in {path}; remove it, and pair again", field="machines_dir")
    return Certificate(path, ssl.PEM_cert_to_DER_cert(found[0]))


def machine_name() -> str:
    """What this machine calls itself, in the characters and the length that a name may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "", socket.gethostname())[:48] or f"process-{os.getpid()}"


def _new() -> bytes:
    """A private key on P-256 and a certificate that it signed, PEM."""
    from cryptography import x509  # noqa: PLC0415 - 60 ms, once in the life of a machine
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - as above

    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own, so that OpenSSL never takes one machine's certificate for the issuer of another's.
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{machine_name()} {secrets.token_hex(6)}")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), _FIRST_DAY, _LAST_DAY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
