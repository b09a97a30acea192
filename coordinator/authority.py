"""The fleet's own certificate authority: one key on the coordinator, made on first use.

Elliptic keys (P-256), X.509 v3. The broker's certificate may only serve, those of devices and of the coordinator may
only be clients, so that no device can pose as the broker.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmpq.errors import MissingExtraError, StateError

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ModuleNotFoundError:  # pragma: no cover - the coordinator extra brings it
    raise MissingExtraError("cryptography", "coordinator") from None

CA_DAYS = 3650
SERVER_DAYS = 398
#: A certificate with less than this left is made anew when the coordinator starts.
RENEW_DAYS = 30
#: Certificates begin this long ago, for devices whose clocks are late.
_SLACK = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key as PEM, with its serial number and end (Unix seconds)."""

    certificate: str
    key: str
    serial: int
    not_after: int


class Authority:
    """The authority in a directory: `ca.pem` and `ca.key` (0600).

    Args:
        directory: made (0700) with a new authority if there is none.
        name: of the fleet; part of the authority's name.

    Raises:
        StateError: the files cannot be written, or are not a certificate and its key.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.certificate_path = directory / "ca.pem"
        key_path = directory / "ca.key"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not key_path.exists():
                self._create(key_path, name)
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            self.certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        except OSError as error:
            raise StateError(f"the authority in {directory} cannot be used: {error.strerror}") from None
        except ValueError:
            raise StateError(f"the authority in {directory} is damaged", "restore ca.pem and ca.key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self.certificate.public_key():
            raise StateError(f"ca.key in {directory} does not belong to ca.pem", "restore both from one backup")
        self._key = key

    @property
    def pem(self) -> str:
        """The authority's certificate."""
        return _pem(self.certificate)

    def issue(self, name: str, *, days: float, serve_as: Sequence[str] = (), now: dt.datetime | None = None) -> Issued:
        """A new key and its certificate.

        Args:
            name: the subject's common name, which the broker takes as user name.
            days: of validity.
            serve_as: host names and addresses of a server; empty for a client.
            now: time of issue.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = now or dt.datetime.now(dt.UTC)
        end = min(now + dt.timedelta(days=days), self.certificate.not_valid_after_utc)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if serve_as else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, end) - _SLACK)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if serve_as:
            names = x509.SubjectAlternativeName([_general_name(host) for host in serve_as])
            builder = builder.add_extension(names, critical=False)
        made = builder.sign(self._key, hashes.SHA256())
        return Issued(_pem(made), _key_pem(key), made.serial_number, int(made.not_valid_after_utc.timestamp()))

    def still_good(self, certificate: Path, serve_as: Sequence[str] = ()) -> bool:
        """Whether a certificate is ours, names all these hosts, and lasts for `RENEW_DAYS` more."""
        try:
            found = x509.load_pem_x509_certificate(certificate.read_bytes())
            found.verify_directly_issued_by(self.certificate)
        except (OSError, ValueError, TypeError, InvalidSignature):
            return False
        left = found.not_valid_after_utc - dt.datetime.now(dt.UTC)
        if left < dt.timedelta(days=RENEW_DAYS):
            return False
        if not serve_as:
            return True
        try:
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return False
        return {_general_name(host) for host in serve_as} <= set(names)

    def revocation_list(self, serials: Sequence[int]) -> str:
        """A list of revoked certificates as PEM, for the broker."""
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _SLACK)
            .next_update(self.certificate.not_valid_after_utc)
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        made = builder.sign(self._key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM).decode()

    def _create(self, key_path: Path, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        subject = _name(f"fedmpq fleet {name}"[:64])
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SLACK)
            .not_valid_after(now + dt.timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        # The key comes last: where it is, the certificate is as well.
        write_private(self.certificate_path, _pem(made))
        write_private(key_path, _key_pem(key))


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner reads (0600), whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
