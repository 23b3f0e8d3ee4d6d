"""Licences: SPDX expressions out of metadata, licence files and file headers, and which we take.

Only permissive licences are taken. `OR` needs one side to be permissive, `AND` needs both; what
cannot be identified is not taken.
"""

from __future__ import annotations

import re
from functools import cache

from boolean import Expression
from license_expression import ExpressionError, LicenseWithExceptionSymbol, get_spdx_licensing

UNKNOWN = "unknown"
SOME_BSD = "LicenseRef-BSD"
"""What "BSD License" in package metadata says: which of them, only the licence file knows."""

PERMISSIVE = frozenset({
    "0BSD", "AFL-3.0", "Apache-1.1", "Apache-2.0", "Artistic-2.0", "BlueOak-1.0.0", "BSD-1-Clause",
    "BSD-2-Clause", "BSD-3-Clause", "BSD-4-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "curl",
    "HPND", "ICU", "ISC", "libpng-2.0", SOME_BSD, "LicenseRef-Public-Domain", "MIT",
    "MIT-0", "MIT-CMU", "NCSA", "OpenSSL", "PostgreSQL", "PSF-2.0", "Python-2.0", "Python-2.0.1",
    "Unicode-3.0", "Unicode-DFS-2016", "Unlicense", "UPL-1.0", "W3C", "WTFPL", "X11", "Zlib",
    "zlib-acknowledgement", "ZPL-2.1",
})  # fmt: skip

_ALIASES = {
    "mit license": "MIT", "the mit license": "MIT", "the mit license (mit)": "MIT",
    "mit license (mit)": "MIT", "expat": "MIT", "expat license": "MIT", "mit-license": "MIT",
    "mit no attribution license (mit-0)": "MIT-0",
    "apache": "Apache-2.0", "apache 2": "Apache-2.0", "apache 2.0": "Apache-2.0",
    "apache-2": "Apache-2.0", "apache2": "Apache-2.0", "asl 2": "Apache-2.0",
    "apache license": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "apache license version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0", "apache software license 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0", "apache license v2.0": "Apache-2.0",
    "bsd": SOME_BSD, "bsd license": SOME_BSD, "bsd-like": SOME_BSD,
    "new bsd": "BSD-3-Clause", "new bsd license": "BSD-3-Clause", "modified bsd": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause", "bsd 3 clause": "BSD-3-Clause", "3-clause bsd": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause", "simplified bsd": "BSD-2-Clause", "bsd 2-clause": "BSD-2-Clause",
    "2-clause bsd": "BSD-2-Clause", "bsd 2-clause license": "BSD-2-Clause",
    "isc license": "ISC", "isc license (iscl)": "ISC", "iscl": "ISC",
    "python software foundation license": "PSF-2.0", "psf": "PSF-2.0", "psfl": "PSF-2.0",
    "psf license": "PSF-2.0", "python software foundation": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense", "public domain": "LicenseRef-Public-Domain",
    "cc0 1.0 universal (cc0 1.0) public domain dedication": "CC0-1.0", "cc0": "CC0-1.0",
    "zlib/libpng license": "Zlib", "zlib license": "Zlib", "zope public license": "ZPL-2.1",
    "boost software license 1.0 (bsl-1.0)": "BSL-1.0", "boost software license": "BSL-1.0",
    "historical permission notice and disclaimer (hpnd)": "HPND",
    "university of illinois/ncsa open source license": "NCSA",
}  # fmt: skip
"""Free-text names that package metadata uses, in small letters."""

_TEXTS = (
    # Words that only this licence's own text holds; all that are found count. Which version of a
    # licence that we do not take is not read.
    ("LicenseRef-AGPL", r"GNU AFFERO GENERAL PUBLIC LICENSE"),
    ("LicenseRef-LGPL", r"GNU (LESSER|LIBRARY) GENERAL PUBLIC LICENSE"),
    (
        "LicenseRef-GPL",
        r"GNU GENERAL PUBLIC LICENSE\s+Version|under the terms of the GNU General",
    ),
    ("LicenseRef-MPL", r"Mozilla Public License,? (Version|v\.)"),
    ("LicenseRef-EPL", r"Eclipse Public License"),
    ("LicenseRef-CC-BY-SA", r"Attribution-ShareAlike"),
    ("LicenseRef-CC-BY-NC", r"Attribution-NonCommercial"),
    ("LicenseRef-BUSL", r"Business Source License"),
    ("Apache-2.0", r"Apache License,?\s+(Version|v)"),
    ("MIT-0", r"MIT No Attribution"),
    ("MIT", r"Permission is hereby granted, free of charge, to any person obtaining"),
    ("ISC", r"Permission to use, copy, modify, and/or distribute this software.{0,400}above"),
    ("HPND", r"Permission to use, copy, modify, and distribute this software and its"),
    ("PSF-2.0", r"PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2"),
    ("Unlicense", r"This is free and unencumbered software released into the public domain"),
    ("CC0-1.0", r"CC0 1\.0 Universal"),
    ("Zlib", r"This software is provided 'as-is', without any express or implied"),
    ("BSL-1.0", r"Boost Software License - Version 1\.0"),
    ("BlueOak-1.0.0", r"Blue Oak Model License"),
    ("0BSD", r"Permission to use, copy, modify, and/or distribute this software(?!.{0,400}above)"),
)
_TEXT_PATTERNS = tuple((spdx, re.compile(words, re.DOTALL)) for spdx, words in _TEXTS)
_BSD_TEXT = "Redistribution and use in source and binary forms"

_HEADER_SPDX = re.compile(
    r"SPDX-License-Identifier:[ \t]*([A-Za-z0-9.+() -]+?)[ \t]*(?:\*/|-->|$)", re.M
)
_HEADER_COPYLEFT = re.compile(
    r"(?i)GNU\s+(?:(?:Lesser|Library|Affero)\s+)?General\s+Public\s+Licen[sc]e|"
    r"Mozilla\s+Public\s+License|Eclipse\s+Public\s+License|Attribution-(?:ShareAlike|NonCommercial)|"
    r"\bA?GPL ?v?[23]\b|Business Source License"
)
HEADER_CHARS = 3000
"""A file's licence header stands within its first characters."""


@cache
def is_permissive(expression: str) -> bool:
    """Whether an SPDX expression leaves a permissive way to use the code."""
    try:
        return _permits(get_spdx_licensing().parse(expression))
    except ExpressionError:
        return False


def _permits(node: Expression | None) -> bool:
    if node is None:
        return False
    if node.args:
        rule = any if node.operator.strip() == "OR" else all  # type: ignore[attr-defined]
        return rule(map(_permits, node.args))
    if isinstance(node, LicenseWithExceptionSymbol):  # an exception only permits more
        node = node.license_symbol
    return getattr(node, "key", None) in PERMISSIVE


def names_a_bsd(expression: str) -> bool:
    """Whether an expression is permissive and says which BSD licence it means."""
    return bool(re.search(r"BSD-\d-Clause", expression)) and is_permissive(expression)


@cache
def named(value: str) -> str:
    """The SPDX expression of a licence as metadata names it, or `UNKNOWN`."""
    value = " ".join(value.split())
    alias = _ALIASES.get(value.lower().removesuffix("."))
    if alias is not None:
        return alias
    # Cargo once wrote "MIT/Apache-2.0"; "MIT, BSD" may mean either word, so it means both.
    expression = re.sub(r"\s*/\s*", " OR ", value)
    licensing = get_spdx_licensing()
    try:
        parsed = licensing.parse(expression)
        if parsed is None or licensing.unknown_license_keys(parsed):
            return UNKNOWN
        return str(parsed)
    except ExpressionError:
        return UNKNOWN


def in_text(text: str) -> str:
    """The licences whose own text stands in a licence file, joined by AND, or `UNKNOWN`."""
    flat = " ".join(text.split())
    found = [spdx for spdx, pattern in _TEXT_PATTERNS if pattern.search(flat)]
    if _BSD_TEXT in flat:
        found.append(
            "BSD-3-Clause" if re.search("(?i)neither the names? ", flat) else "BSD-2-Clause"
        )
    return " AND ".join(found) or UNKNOWN


def forbidden_header(text: str) -> bool:
    """Whether a file's own header puts it under a licence that is not permissive."""
    head = text[:HEADER_CHARS]
    stated = _HEADER_SPDX.search(head)
    if stated:
        return not is_permissive(named(stated.group(1)))
    return _HEADER_COPYLEFT.search(head) is not None
