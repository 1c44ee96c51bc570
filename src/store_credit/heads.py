"""Heads of requests: the URL and the headers, as the parser of HTTP found them."""

from __future__ import annotations

from store_credit.errors import ApiError, BadRequest, HeadTooLarge, Problem, UriTooLong

Headers = list[tuple[bytes, bytes]]
"""The names are in lower case."""

HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
URL_BYTES_MAX = 8 * 1024


def check(version: str, url: bytes, headers: Headers) -> None:
    """Raises ApiError for a head that is too large, or that another server may read in another way."""
    if len(url) > URL_BYTES_MAX or len(headers) > HEADERS_MAX:
        raise too_large(url)
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding" and (value.lower() != b"chunked" or version != "1.1"):
            message = "The body must not be transferred other than chunked, and so by HTTP/1.1 alone."
            raise BadRequest(Problem("invalid_format", message, "Transfer-Encoding"))
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise BadRequest(Problem("invalid_format", "There must be one header of this name.", "Host"))
    if version not in ("1.1", "1.0"):
        raise BadRequest(Problem("invalid_format", "The version of HTTP must be 1.1 or 1.0."))


def too_large(url: bytes) -> ApiError:
    if len(url) > URL_BYTES_MAX:
        message = f"The URL is longer than {URL_BYTES_MAX} bytes."
        return UriTooLong(Problem("uri_too_long", message))
    message = f"The headers are more than {HEADERS_MAX}, or larger than {HEAD_BYTES_MAX} bytes."
    return HeadTooLarge(Problem("head_too_large", message))


def size(url: bytes, headers: Headers) -> int:
    return len(url) + sum(len(name) + len(value) + len(": \r\n") for name, value in headers)


def without_upgrade(method: bytes, url: bytes, version: str, headers: Headers) -> bytes:
    """The head of a request as if it had not asked for another protocol."""
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode("ascii"))]
    for name, value in headers:
        kept = value
        if name == b"connection":
            tokens = [token.strip() for token in value.lower().split(b",")]
            kept = b", ".join(token for token in tokens if token in (b"close", b"keep-alive"))
        if name != b"upgrade":
            lines.append(name + b": " + kept)
    return b"\r\n".join([*lines, b"", b""])
