"""The webhook's signature: what proves that an event comes from Digital River, and what does not."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest

from store_credit.webhooks.signature import CANDIDATES_MAX, SignatureRefused, moment, sign, time_of, verify
from tests.http_fixtures import signature_of
from tests.making import NOON

BODY = b'{"id": "event-1", "amount": 11.40}'
TOLERANCE = timedelta(seconds=300)
SECONDS = str(int(NOON.timestamp()))
SECRET = "current-secret"


def accepts(
    header: str, body: bytes = BODY, secrets: tuple[str, ...] = (SECRET,), now: datetime = NOON
) -> bool:
    try:
        verify(header, body, secrets, now, TOLERANCE)
    except SignatureRefused:
        return False
    return True


def signed(timestamp: str = SECONDS, secret: str = SECRET, body: bytes = BODY) -> str:
    return signature_of(body, timestamp, secret)


def candidate(secret: str = SECRET) -> str:
    return signed(secret=secret).partition(", ")[2]


def test_a_known_signature() -> None:
    # Made with `printf '1700000000.{}' | openssl dgst -sha256 -hmac key -binary | base64`.
    assert sign("1700000000", b"{}", "key") == "nXE+1Aa7cHbUEj8NwsOdLfXGVO1LDNVrUsi0yUC9Y64="


@pytest.mark.parametrize(
    "timestamp",
    [
        SECONDS,
        f"{SECONDS}000",
        f"{SECONDS}999",
        "2026-11-20T12:00:00Z",
        "2026-11-20T12:00:00.12345Z",
        "2026-11-20T12:00:00.123456Z[UTC]",
        "2026-11-20T13:00:00+01:00",
        "2026-11-20T13:00:00+01:00[Europe/Berlin]",
        "2026-11-20T12:00:00",
    ],
)
def test_a_time_in_any_unit(timestamp: str) -> None:
    assert accepts(signed(timestamp))


@pytest.mark.parametrize(
    "timestamp",
    ["", "0", "now", "-1", "1e9", "٣", f"{SECONDS}.5", "9" * 15, "9" * 16, "2026-13-01T00:00:00Z", "[UTC]"],
)
def test_a_time_that_is_none_or_long_ago(timestamp: str) -> None:
    assert not accepts(signed(timestamp))


@pytest.mark.parametrize("unit", ["seconds", "milliseconds", "iso"])
@pytest.mark.parametrize("sign_of_age", [-1, 1])
def test_the_edge_of_the_tolerance(unit: str, sign_of_age: int) -> None:
    timestamp = {"seconds": SECONDS, "milliseconds": f"{SECONDS}000", "iso": NOON.isoformat()}[unit]
    edge = sign_of_age * TOLERANCE
    assert accepts(signed(timestamp), now=NOON + edge)
    assert not accepts(signed(timestamp), now=NOON + edge + sign_of_age * timedelta(milliseconds=1))


def test_any_of_several_secrets_may_sign() -> None:
    secrets = ("first", "second", "third")
    assert [accepts(signed(secret=secret), secrets=secrets) for secret in secrets] == [True, True, True]


def test_a_secret_that_is_not_configured() -> None:
    assert not accepts(signed(secret="retired"), secrets=("first", "second"))


def test_no_secret_accepts_nothing() -> None:
    assert not accepts(signed(secret=""), secrets=())


def test_a_secret_may_hold_any_characters() -> None:
    assert accepts(signed(secret="schlüssel 🔑"), secrets=("schlüssel 🔑",))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_any_of_several_candidates_may_match(position: int) -> None:
    candidates = [candidate("other"), candidate("another")]
    candidates.insert(position, candidate())
    assert accepts(", ".join([SECONDS, *candidates]))


def test_no_candidate_matches() -> None:
    assert not accepts(f"{SECONDS}, {candidate('other')}, {candidate('another')}")


def test_there_may_be_only_so_many_candidates() -> None:
    others = [candidate("other")] * (CANDIDATES_MAX - 1)
    assert accepts(", ".join([SECONDS, *others, candidate()]))
    assert not accepts(", ".join([SECONDS, *others, candidate("other"), candidate()]))


@pytest.mark.parametrize("separator", [",", ", ", " , ", ",\t"])
def test_blanks_around_the_comma_do_not_matter(separator: str) -> None:
    assert accepts(f" {SECONDS}{separator}{candidate()} ")


@pytest.mark.parametrize(
    "header",
    [
        "",
        ",",
        SECONDS,
        f"{SECONDS},",
        candidate(),
        f"{candidate()}, {SECONDS}",
        f"{SECONDS} {candidate()}",
        f"t={SECONDS}, v1={candidate()}",
        f"{SECONDS}, sha256={candidate()}",
        f"{SECONDS}, {candidate().lower()}",
        f"{SECONDS}, {candidate().rstrip('=')}",
        f"{SECONDS}, {base64.b64decode(candidate()).hex()}",
        f"{SECONDS}, ünsigned",
    ],
)
def test_a_header_of_another_form(header: str) -> None:
    assert not accepts(header)


def test_url_safe_base64_is_not_the_standard_one() -> None:
    body = next(
        body for n in range(1_000) if "+" in signed(body=(body := b"%d" % n)) or "/" in signed(body=body)
    )
    header = signed(body=body)
    assert accepts(header, body)
    assert not accepts(header.replace("+", "-").replace("/", "_"), body)


def test_every_changed_bit_of_the_body() -> None:
    header = signed()
    for index in range(len(BODY) * 8):
        changed = bytearray(BODY)
        changed[index // 8] ^= 1 << index % 8
        assert not accepts(header, bytes(changed)), index


def test_every_changed_bit_of_the_signature() -> None:
    digest = base64.b64decode(candidate())
    for index in range(len(digest) * 8):
        changed = bytearray(digest)
        changed[index // 8] ^= 1 << index % 8
        assert not accepts(f"{SECONDS}, {base64.b64encode(changed).decode()}"), index


def test_every_changed_bit_of_the_timestamp() -> None:
    for index in range(len(SECONDS) * 8):
        changed = bytearray(SECONDS.encode())
        changed[index // 8] ^= 1 << index % 8
        assert not accepts(f"{changed.decode('latin-1')}, {candidate()}"), index


@pytest.mark.parametrize("body", [b"", BODY + b"\n", b" " + BODY, BODY.replace(b"11.40", b"11.4")])
def test_the_raw_bytes_are_signed(body: bytes) -> None:
    assert not accepts(signed(), body)


def test_an_empty_body_can_be_signed() -> None:
    assert accepts(signed(body=b""), b"")


def test_the_timestamp_can_not_borrow_from_the_body() -> None:
    # `1.2` + `.` + `3` and `1` + `.` + `2.3` are the same bytes: only the age check tells them apart.
    header = signed(body=b"2026.{}")
    assert not accepts(header.replace(SECONDS, f"{SECONDS}.2026"), b"{}")


def test_a_refusal_repeats_nothing_that_was_sent() -> None:
    with pytest.raises(SignatureRefused) as refused:
        verify(f"{SECONDS}, {candidate('other')}", BODY, [SECRET], NOON, TOLERANCE)
    for secret in (candidate("other"), candidate(), SECRET, "event-1"):
        assert secret not in str(refused.value)


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("99999999999", datetime(5138, 11, 16, 9, 46, 39, tzinfo=UTC)),
        ("100000000000", datetime(1973, 3, 3, 9, 46, 40, tzinfo=UTC)),
        ("0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("x", None),
        ("999999999999999", None),
    ],
)
def test_what_a_timestamp_stands_for(timestamp: str, expected: datetime | None) -> None:
    assert time_of(timestamp) == expected


@pytest.mark.parametrize("digits", ["1", "12345", "123456"])
def test_a_moment_has_any_number_of_fraction_digits(digits: str) -> None:
    expected = NOON.replace(microsecond=int(digits.ljust(6, "0")))
    assert moment(f"2026-11-20T12:00:00.{digits}Z[UTC]") == expected
