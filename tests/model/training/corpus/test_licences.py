from __future__ import annotations

import pytest

from model.training.corpus.licences import (
    UNKNOWN,
    forbidden_header,
    in_text,
    is_permissive,
    named,
)


@pytest.mark.parametrize(
    ("expression", "permissive"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-2.0-only", True),
        ("GPL-2.0-only OR Apache-2.0", True),
        ("MIT AND GPL-3.0-or-later", False),
        ("MIT AND BSD-3-Clause", True),
        ("(MIT OR GPL-2.0-only) AND LGPL-2.1-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("MPL-2.0", False),
        ("AGPL-3.0-only", False),
        ("CC-BY-NC-4.0", False),
        (UNKNOWN, False),
        ("", False),
        ("no such thing (", False),
    ],
)
def test_or_needs_one_permissive_side_and_and_needs_both(expression: str, permissive: bool) -> None:
    assert is_permissive(expression) is permissive


@pytest.mark.parametrize(
    ("value", "expression"),
    [
        ("MIT", "MIT"),
        ("mit license", "MIT"),
        ("The MIT License (MIT)", "MIT"),
        ("Apache License,\n Version 2.0", "Apache-2.0"),
        ("bsd-3-clause", "BSD-3-Clause"),
        ("BSD License", "LicenseRef-BSD"),
        ("MIT/Apache-2.0", "MIT OR Apache-2.0"),
        ("GPL-2.0", "GPL-2.0-only"),
        ("Proprietary", UNKNOWN),
        ("see LICENSE", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_the_names_that_metadata_uses_become_spdx(value: str, expression: str) -> None:
    assert named(value) == expression


BSD = "Redistribution and use in source and binary forms, with or without modification,"
ISC = "Permission to use, copy, modify, and/or distribute this software for any purpose"


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("Permission is hereby granted, free\n of charge, to any person obtaining", "MIT"),
        (BSD, "BSD-2-Clause"),
        (BSD + " Neither the name of the copyright holder", "BSD-3-Clause"),
        (ISC + " provided that the above copyright notice", "ISC"),
        (ISC + ' THE SOFTWARE IS PROVIDED "AS IS"', "0BSD"),
        ("Apache License\n Version 2.0, January 2004", "Apache-2.0"),
        ("GNU GENERAL PUBLIC LICENSE\n Version 3", "LicenseRef-GPL"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\n Version 3", "LicenseRef-LGPL"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3", "LicenseRef-AGPL"),
        ("Mozilla Public License Version 2.0", "LicenseRef-MPL"),
        ("All rights reserved.", UNKNOWN),
    ],
)
def test_a_licence_text_is_recognised_by_its_own_words(text: str, expression: str) -> None:
    assert in_text(text) == expression


def test_a_text_that_holds_a_copyleft_licence_too_is_not_permissive() -> None:
    both = BSD + "\n\nGNU GENERAL PUBLIC LICENSE\nVersion 2"
    assert not is_permissive(in_text(both))


@pytest.mark.parametrize(
    ("header", "forbidden"),
    [
        ("# SPDX-License-Identifier: MIT\n", False),
        ("/* SPDX-License-Identifier: GPL-2.0-only */\n", True),
        ("// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only\n", False),
        ("<!-- SPDX-License-Identifier: MPL-2.0 -->", True),
        ("# SPDX-License-Identifier: LicenseRef-Ours\n", True),
        ("# under the terms of the GNU Lesser General\n# x", False),  # not a whole name
        ("# under the terms of the GNU Lesser General Public License", True),
        ("# the GNU General\n  Public License", True),
        ("# Licensed under GPLv2 or later", True),
        ("# Licensed under the Apache License, Version 2.0", False),
        ("x = 1\n" * 1000 + "# GNU General Public License", False),
    ],
)
def test_a_files_own_header_counts(header: str, forbidden: bool) -> None:
    assert forbidden_header(header) is forbidden
