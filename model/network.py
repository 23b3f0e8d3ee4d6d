"""What the environment tells HTTP clients, where it cannot be followed: proxies, certificates."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import httpx2

from model.api import CompletionError


@contextmanager
def following_the_environment(error_class: type[CompletionError]) -> Generator[None]:
    """Around the making of a client whose own address is in order: what it raises becomes an
    `error_class` that says what is to be put right."""
    try:
        yield
    except OSError as error:  # that of a missing file does not name it; `ssl.SSLError` is one, too
        names = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ]
        named = " and ".join(f"{name} ({os.environ[name]})" for name in names)
        why = error.strerror or str(error)
        raise error_class(
            f"the certificates of {named or 'this machine'} cannot be read: {why}"
        ) from error
    except ImportError as error:
        raise error_class(
            "the environment names a SOCKS proxy, which needs the package `socksio` beside "
            "Mezzotint's, or an entry in NO_PROXY"
        ) from error
    except (httpx2.InvalidURL, ValueError) as error:  # its text hides a proxy's password
        raise error_class(
            f"the proxy that the environment names cannot be used: {str(error).rstrip('.')}"
        ) from error
