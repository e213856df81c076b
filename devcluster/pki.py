"""Certificates, tokens and kubeconfigs of a cluster: one authority, made with it and gone with it."""

from __future__ import annotations

import base64
import csv
import datetime
import io
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
VALID_DAYS = 365
KUBERNETES_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


@dataclass(frozen=True)
class KeyPair:
    """Paths of a PEM certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates as `common_name`. Its files are `ca.crt` and `ca.key` in `folder`, made when they are missing.

    Keys are P-256: making a dozen takes milliseconds, which RSA keys would not. `names` and an `rsa_key` are for the few who
    want an authority with names of its own, or can read no other key.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = (),
        *,
        common_name: str = "trainyard-devcluster",
        rsa_key: bool = False,
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.certificate_path = folder / "ca.crt"
        key_path = folder / "ca.key"
        if not (key_path.exists() and self.certificate_path.exists()):
            key = _new_rsa_key() if rsa_key else ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
            _write(key_path, _key_pem(key))
            _write(self.certificate_path, _certificate_pem(_sign_authority(name, key, names)))
        loaded = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        assert isinstance(loaded, PrivateKey)
        self._key = loaded
        self._certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())

    def issue(
        self,
        file_name: str,
        common_name: str,
        organizations: Sequence[str] = (),
        names: Sequence[str] = (),
        addresses: Sequence[IPv4Address] = (),
    ) -> KeyPair:
        """A certificate for a client, and for a server where names or addresses are given, as `file_name`.crt/.key."""
        pair = KeyPair(self.folder / f"{file_name}.crt", self.folder / f"{file_name}.key")
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
        subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(subject, self._certificate.subject, key.public_key())
        if names or addresses:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
            alternatives = [*map(x509.DNSName, names), *map(x509.IPAddress, addresses)]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(issuer, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        _write(pair.key, _key_pem(key))
        _write(pair.certificate, _certificate_pem(certificate))
        return pair

    def kubeconfig(self, path: Path, server: str, user: str, token: str) -> None:
        """Writes a kubeconfig that carries its certificate and token, so that the one file is all that a client needs."""
        cluster = {"server": server, "certificate-authority-data": _encoded(self.certificate_path)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "devcluster", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": user}}],
            "current-context": "devcluster",
        }
        _write(path, json.dumps(content, indent=1).encode())


def static_tokens(path: Path, users: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A token for each of `users`, given with their groups: those of the file at `path`, which is written when it is missing.

    It is what an API server takes as `--token-auth-file`. A token that it has seen costs it nothing; a client's certificate is
    verified again at every request, a seventh of what a read costs.
    """
    if not path.exists():
        lines = io.StringIO()
        csv.writer(lines).writerows((secrets.token_urlsafe(32), user, user, ",".join(users[user])) for user in users)
        _write(path, lines.getvalue().encode())
    with path.open(newline="") as file:
        return {user: token for token, user, *_ in csv.reader(file)}


def service_account_key(folder: Path) -> KeyPair:
    """The key that signs service-account tokens. RSA, as on nearly every real cluster: verifiers must cope with it."""
    pair = KeyPair(folder / "service-account.pub", folder / "service-account.key")
    key = _new_rsa_key()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write(pair.key, _key_pem(key))
    _write(pair.certificate, public)
    return pair


def _sign_authority(name: x509.Name, key: PrivateKey, names: Sequence[str]) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = _builder(name, name, key.public_key())
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), critical=False
        )
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
) -> x509.CertificateBuilder:
    """A certificate in the making; valid from an hour ago, so that clocks need not agree to the second.

    It carries its key's identifier: Python 3.13 and later refuse chains without it.
    """
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _new_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _write(path: Path, content: bytes) -> None:
    """Replaces the file at once; only its owner may read it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(content)
    temporary.replace(path)
