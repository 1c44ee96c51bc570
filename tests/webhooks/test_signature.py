"""The webhook's signature: what proves that an event comes from Digital River, and what does not."""

from __future__ import annotations

import base64
import hmac
import json
import string
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from store_credit.webhooks.signature import (
    CANDIDATES_MAX,
    HEADER_LENGTH_MAX,
    SignatureRefused,
    moment,
    sign,
    time_of,
    verify,
)
from tests.http_fixtures import Shop, order_event, problem_of, signature_of, source
from tests.making import NOON

pytest_plugins = ["tests.http_fixtures"]

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


def flipped(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Each bit's number, and the bytes with that bit changed."""
    for index in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[index // 8] ^= 1 << index % 8
        yield index, bytes(changed)


EVENT = json.dumps(
    {
        "id": "4f0c1a52-6d0e-4a55-9d6a-5f1f6f0f7a11",
        "type": "checkout_session.order.created",
        "createdTime": "2026-11-20T12:00:00.123456Z",
        "liveMode": True,
        "data": {"object": order_event(source())["data"]["object"] | {"email": "kundin@beispiel.test"}},
    },
    indent=2,
).encode()
TIMESTAMPS = [SECONDS, f"{SECONDS}000", "2026-11-20T12:00:00Z", "2026-11-20T13:00:00+01:00[Europe/Berlin]"]
each_timestamp = pytest.mark.parametrize("timestamp", TIMESTAMPS)


def test_every_changed_bit_of_the_body() -> None:
    header = signed(body=EVENT)
    assert accepts(header, EVENT)
    assert [index for index, changed in flipped(EVENT) if accepts(header, changed)] == []


@each_timestamp
def test_every_changed_bit_of_the_header(timestamp: str) -> None:
    """Of timestamp, separator and signature, as a server would decode them."""
    header = signed(timestamp, body=EVENT)
    assert accepts(header, EVENT)
    changes = flipped(header.encode())
    assert [index for index, raw in changes if accepts(raw.decode("latin-1"), EVENT)] == []


@each_timestamp
def test_every_changed_bit_of_the_signature(timestamp: str) -> None:
    digest = base64.b64decode(signed(timestamp, body=EVENT).partition(", ")[2])
    for index, changed in flipped(digest):
        assert not accepts(f"{timestamp}, {base64.b64encode(changed).decode()}", EVENT), index


def test_no_other_base64_of_the_same_signature() -> None:
    """The last character but the padding has two bits that decoding throws away."""
    right = candidate()
    for last in string.ascii_letters + string.digits + "+/":
        other = f"{right[:-2]}{last}="
        assert accepts(f"{SECONDS}, {other}") == (other == right), other


@pytest.mark.parametrize("body", [b"", BODY + b"\n", b" " + BODY, BODY.replace(b"11.40", b"11.4")])
def test_the_raw_bytes_are_signed(body: bytes) -> None:
    assert not accepts(signed(), body)


def test_an_empty_body_can_be_signed() -> None:
    assert accepts(signed(body=b""), b"")


def test_the_timestamp_can_not_borrow_from_the_body() -> None:
    # `1.2` + `.` + `3` and `1` + `.` + `2.3` are the same bytes: only the age check tells them apart.
    header = signed(body=b"2026.{}")
    assert not accepts(header.replace(SECONDS, f"{SECONDS}.2026"), b"{}")


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("matching", [0, -1])
def test_every_candidate_is_compared_with_every_secret_in_constant_time(
    monkeypatch: pytest.MonkeyPatch, count: int, matching: int
) -> None:
    """Also after a match: how long it takes tells neither whether nor which one matched."""
    compared: list[tuple[bytes, bytes]] = []
    constant_time = hmac.compare_digest

    def counting(right: bytes, given: bytes) -> bool:
        compared.append((right, given))
        return constant_time(right, given)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    secrets = tuple(f"secret-{n}" for n in range(count))
    header = ", ".join([SECONDS, candidate(secrets[matching]), candidate("other")])
    assert accepts(header, secrets=secrets)
    assert len(compared) == count * 2
    assert not accepts(f"{SECONDS}, {candidate('other')}", secrets=secrets)
    assert len(compared) == count * 3
    assert {right.decode() for right, _ in compared} == {sign(SECONDS, BODY, secret) for secret in secrets}


# Headers that were made up


def test_the_last_of_several_v1_may_match_and_no_key_is_read() -> None:
    assert accepts(f"{SECONDS}, v1={candidate('other')}, {candidate()}")
    assert not accepts(f"t={SECONDS}, v1={candidate()}, v1={candidate()}")
    assert not accepts(f"{SECONDS}, v1={candidate()}, v1={candidate()}, v0={candidate()}")


def test_of_two_timestamps_the_first_is_signed() -> None:
    assert not accepts(f"1, {SECONDS}, {candidate()}")
    assert accepts(f"{SECONDS}, 1, {candidate()}")


@pytest.mark.parametrize(
    "timestamp",
    [
        *("+" + SECONDS, "-" + SECONDS, f"{SECONDS[:4]}_{SECONDS[4:]}", f"{SECONDS[:4]} {SECONDS[4:]}"),
        *(f"t={SECONDS}", f"{SECONDS}.0", f"{SECONDS}e0", hex(int(SECONDS)), f"{SECONDS}[UTC]"),
        *(f"{SECONDS}\x0b", f"\x1f{SECONDS}", f"{SECONDS}\0", f"{SECONDS}\n"),
    ],
)
def test_a_timestamp_in_another_notation(timestamp: str) -> None:
    assert not accepts(signed(timestamp))


@pytest.mark.parametrize(
    "zero", ["\N{ARABIC-INDIC DIGIT ZERO}", "\N{FULLWIDTH DIGIT ZERO}", "\N{SUPERSCRIPT ZERO}"]
)
def test_digits_of_other_scripts(zero: str) -> None:
    timestamp = "".join(chr(ord(zero) + int(digit)) for digit in SECONDS)
    assert not accepts(signed(timestamp))


@pytest.mark.parametrize("blank", ["\xa0", "\x85", "\u2003", "\x0c", "\x1c", "\n", "\ud800"])
def test_only_blanks_and_tabs_are_blank(blank: str) -> None:
    assert not accepts(f"{SECONDS},{blank}{candidate()}")


def test_upper_case_hex() -> None:
    digest = base64.b64decode(candidate())
    assert not accepts(f"{SECONDS}, {digest.hex().upper()}")


def test_a_huge_header_is_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accepts(f"{SECONDS}, {candidate()}".ljust(HEADER_LENGTH_MAX))
    monkeypatch.setattr(hmac, "digest", None)
    assert not accepts(f"{SECONDS}, {candidate()}".ljust(HEADER_LENGTH_MAX + 1))
    assert not accepts("," * 1_000_000)
    assert not accepts(f"{SECONDS}{', ' * CANDIDATES_MAX}, {candidate()}")


async def test_a_second_header_adds_nothing(shop: Shop) -> None:
    body = json.dumps(order_event(source())).encode()
    now = str(int(shop.clock().timestamp()))
    right, wrong = signature_of(body, now), signature_of(body, now, "other")

    async def post(*headers: str) -> httpx.Response:
        given = [("DigitalRiver-Signature", header) for header in headers]
        kind = ("Content-Type", "application/json")
        return await shop.client.post("/webhooks/digital-river", content=body, headers=[kind, *given])

    problem_of(await post(wrong, wrong), 401, "unauthorized")
    problem_of(await post(wrong, right), 401, "unauthorized")
    assert (await post(right, wrong)).status_code == 200


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
