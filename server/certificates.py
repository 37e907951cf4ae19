"""Keys and certificates of a server: an authority of its own, and certificates that it signs for the names it goes by.

The authority's key signs nothing but the server's certificate. It may be kept elsewhere between two renewals; devices
pin its certificate, so a renewed server certificate needs nothing of them. Times are the operator's clock in UTC, with
an hour before now for clocks that are slow.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privacy.errors import ConfigError
from privacy.files import write_atomic

AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 397  # what common clients accept at most
SLOW_CLOCKS: Final = datetime.timedelta(hours=1)
LOOPBACK: Final = ("127.0.0.1", "localhost")


def new_authority(key_file: Path, certificate_file: Path, name: str) -> None:
    """Write a new authority: its key, mode 0600, and its certificate, valid for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = _named(f"confide {name}")
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    builder = _builder(issuer, issuer, key.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    write_atomic(key_file, _pem(key), mode=0o600)
    write_atomic(certificate_file, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


def new_server_certificate(
    folder: Path, authority_key: Path, authority: Path, names: Sequence[str], days: int = SERVER_DAYS
) -> None:
    """Write server.key, mode 0600, and server.crt into `folder`, for `names` (hosts or addresses) and loopback.

    Raises ConfigError where the authority's key is not at hand.
    """
    try:
        signer = load_pem_private_key(authority_key.read_bytes(), None)
    except OSError:
        raise ConfigError(f"{authority_key.name} is not here: bring the authority's key back to sign with it") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{authority_key.name} is no key of an authority")
    root = x509.load_pem_x509_certificate(authority.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    wanted = [*dict.fromkeys((*names, *LOOPBACK))]
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    builder = _builder(_named(wanted[0]), root.subject, key.public_key(), days)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage, True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_subject_name(name) for name in wanted]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    write_atomic(folder / "server.key", _pem(key), mode=0o600)
    write_atomic(folder / "server.crt", builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM))


def days_left(certificate: Path) -> int:
    """Return the whole days until a certificate ends, negative past its end."""
    ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return (ends - datetime.datetime.now(datetime.UTC)).days


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLOW_CLOCKS)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _subject_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
