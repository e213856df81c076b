"""The intake's certificate: good when made, renewed when due, and its authority replaced without breaking running attempts."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta

from cryptography import x509
from trainyard_operator import tls
from trainyard_operator.cluster import SECRETS, Cluster

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOSTS = ["trainyard-intake.trainyard-system.svc", "127.0.0.1"]
DAY = timedelta(days=1)


def verifies(files: dict[str, bytes], bundle: bytes) -> bool:
    """Whether one who trusts `bundle` accepts the certificate."""
    leaf = x509.load_pem_x509_certificate(files[tls.CERTIFICATE])
    for authority in x509.load_pem_x509_certificates(bundle):
        try:
            leaf.verify_directly_issued_by(authority)
        except Exception:
            continue
        return True
    return False


def test_what_is_made_stays_until_it_is_due():
    files = tls.renewed({}, HOSTS, NOW)
    assert verifies(files, files[tls.BUNDLE])
    assert tls.renewed(files, HOSTS, NOW) == files
    assert tls.renewed(files, HOSTS, NOW + 50 * DAY) == files


def test_a_certificate_that_is_due_or_for_another_host_is_made_anew_by_the_same_authority():
    files = tls.renewed({}, HOSTS, NOW)
    later = tls.renewed(files, HOSTS, NOW + 61 * DAY)
    assert later[tls.BUNDLE] == files[tls.BUNDLE]
    assert later[tls.CERTIFICATE] != files[tls.CERTIFICATE]
    assert verifies(later, files[tls.BUNDLE])
    moved = tls.renewed(files, ["other.svc"], NOW)
    assert moved[tls.CERTIFICATE] != files[tls.CERTIFICATE]
    assert verifies(moved, files[tls.BUNDLE])


def test_damaged_files_are_made_anew():
    files = tls.renewed({}, HOSTS, NOW)
    for name in (tls.CA, tls.CA_KEY, tls.CERTIFICATE, tls.KEY):
        repaired = tls.renewed(files | {name: b"nonsense"}, HOSTS, NOW)
        assert verifies(repaired, repaired[tls.BUNDLE])


def test_an_attempt_that_knows_an_old_authority_alone_trusts_every_certificate_for_a_year_and_more():
    files = tls.renewed({}, HOSTS, NOW)
    bundles: list[tuple[datetime, bytes]] = []
    when, end = NOW, NOW + 30 * 365 * DAY
    authorities = set()
    while when < end:
        files = tls.renewed(files, HOSTS, when)
        authorities.add(files[tls.CA])
        bundles.append((when, files[tls.BUNDLE]))
        made, oldest = next((made, bundle) for made, bundle in bundles if when - made <= 366 * DAY)
        assert verifies(files, oldest), f"a job of {made} refuses the certificate of {when}"
        when += 25 * DAY
    assert len(authorities) >= 3, "the authority was never replaced"


async def test_leaders_that_start_at_once_agree_on_one_certificate(api: Cluster, namespace: str):
    results = await asyncio.gather(*(tls.ensure_secret(api, namespace, "tls", HOSTS, NOW) for _ in range(4)))
    assert all(result == results[0] for result in results)
    assert tls.secret_data(await api.get(SECRETS, namespace, "tls")) == results[0]
    tls.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), results[0])
    later = await tls.ensure_secret(api, namespace, "tls", HOSTS, NOW + 61 * DAY)
    assert later[tls.CERTIFICATE] != results[0][tls.CERTIFICATE]
    assert tls.secret_data(await api.get(SECRETS, namespace, "tls")) == later
