"""Certificate and CA of the intake: made by the leader, kept in a Secret, read by every replica.

The CA travels in each attempt's RunSpec and cannot be changed there, so a CA is replaced in two steps: first the new one is
added to the bundle that new attempts get, and only when the longest attempt that knows the old one alone must be over does
the new one sign. The certificate itself is short-lived and renewed from the CA that signs.
"""

import base64
import ipaddress
import logging
import os
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trainyard_operator.cluster import SECRETS, Cluster, ConflictError, Object

logger = logging.getLogger(__name__)

CA_LIFE = timedelta(days=3650)
CA_OVERLAP = timedelta(days=400)
"""How long a new CA is only announced before it signs: more than the longest timeout that a job may have."""
CERTIFICATE_LIFE = timedelta(days=90)
CERTIFICATE_RENEWAL = timedelta(days=30)

CA, CA_KEY, NEXT_CA, NEXT_CA_KEY = "signing-ca.crt", "signing-ca.key", "next-ca.crt", "next-ca.key"
BUNDLE, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def renewed(data: Mapping[str, bytes], hosts: Sequence[str], now: datetime) -> dict[str, bytes]:
    """The Secret's data with everything that is missing, due or for other `hosts` made anew; equal when all is well."""
    files = dict(data)
    authority = _load_authority(files, CA, CA_KEY)
    if authority is None or authority.certificate.not_valid_after_utc <= now:
        files = {}
        authority = _put(files, _new_authority(now), CA, CA_KEY)
    upcoming = _load_authority(files, NEXT_CA, NEXT_CA_KEY)
    if authority.certificate.not_valid_after_utc - now < 2 * CA_OVERLAP and upcoming is None:
        upcoming = _put(files, _new_authority(now), NEXT_CA, NEXT_CA_KEY)
    elif upcoming is not None and now - upcoming.certificate.not_valid_before_utc > CA_OVERLAP:
        files[CA], files[CA_KEY] = files.pop(NEXT_CA), files.pop(NEXT_CA_KEY)
        authority, upcoming = upcoming, None
        files.pop(CERTIFICATE, None)
    files[BUNDLE] = files[CA] + files.get(NEXT_CA, b"")
    if not _good_certificate(files, hosts, now):
        files[CERTIFICATE], files[KEY] = _new_certificate(authority, hosts, now)
    return files


async def ensure_secret(
    cluster: Cluster, namespace: str, name: str, hosts: Sequence[str], now: datetime
) -> dict[str, bytes]:
    """Make or renew the Secret; what is in it then. Called by the leader; a conflict means that another one was faster."""
    for _ in range(5):
        secret = await cluster.find(SECRETS, namespace, name)
        data = secret_data(secret)
        files = renewed(data, hosts, now)
        if secret is not None and files == data:
            return files
        body: Object = secret or {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app.kubernetes.io/managed-by": "trainyard"}},
        }
        body = body | {"data": {key: base64.b64encode(value).decode() for key, value in files.items()}}
        try:
            await (cluster.create(SECRETS, body) if secret is None else cluster.replace(SECRETS, body))
        except ConflictError:
            continue
        logger.info("the intake's certificate in Secret %s/%s was %s", namespace, name, "renewed" if secret else "made")
        return files
    raise ConflictError(
        f"Secret {namespace}/{name} is being changed all the time; nothing was written to it", status=409
    )


def secret_data(secret: Object | None) -> dict[str, bytes]:
    """The decoded data of a Secret; empty when there is none."""
    return {key: base64.b64decode(value) for key, value in ((secret or {}).get("data") or {}).items()}


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a mounted Secret that somebody else (cert-manager) keeps; empty while one is missing."""
    files = {name: folder / name for name in (BUNDLE, CERTIFICATE, KEY)}
    return {name: path.read_bytes() for name, path in files.items()} if all(p.is_file() for p in files.values()) else {}


def load_into(context: ssl.SSLContext, files: Mapping[str, bytes]) -> None:
    """Let new connections use this certificate. Python reads it from a file only: a private one that exists for a moment."""
    descriptor, path = tempfile.mkstemp()
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(files[KEY] + files[CERTIFICATE])
        context.load_cert_chain(path)
    finally:
        Path(path).unlink()


def _load_authority(files: Mapping[str, bytes], certificate: str, key: str) -> Authority | None:
    try:
        loaded = serialization.load_pem_private_key(files[key], None)
        if isinstance(loaded, ec.EllipticCurvePrivateKey):
            return Authority(x509.load_pem_x509_certificate(files[certificate]), loaded)
    except (KeyError, ValueError):
        pass
    return None


def _put(files: dict[str, bytes], authority: Authority, certificate: str, key: str) -> Authority:
    files[certificate] = authority.certificate.public_bytes(serialization.Encoding.PEM)
    files[key] = _pem(authority.key)
    return authority


def _good_certificate(files: Mapping[str, bytes], hosts: Sequence[str], now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(files[CERTIFICATE])
        serialization.load_pem_private_key(files[KEY], None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (KeyError, ValueError, x509.ExtensionNotFound):
        return False
    return set(_alternative_names(hosts)) <= set(names) and certificate.not_valid_after_utc - now > CERTIFICATE_RENEWAL


def _alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _new_authority(now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"trainyard-intake-ca-{now:%Y%m%d}")])
    certificate = (
        _builder(name, name, key.public_key(), now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def _new_certificate(authority: Authority, hosts: Sequence[str], now: datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trainyard-intake")])
    certificate = (
        _builder(subject, authority.certificate.subject, key.public_key(), now, CERTIFICATE_LIFE)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(hosts)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    # An hour back: nodes' clocks differ.
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - timedelta(hours=1))
        .not_valid_after(now.astimezone(UTC) + life)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
