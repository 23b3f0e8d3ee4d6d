"""What to fill a hole with to learn how few errors its document can have, by language.

A name stands almost everywhere, but no JSON has a name, an import wants a string, and behind
`def f` or `if (a` there is more to come than a name.
"""

from __future__ import annotations

from collections.abc import Iterator

from lsp_server.document.context import InfillContext

_C = (";", " {", " {}", "() {}", ":")
_BLOCKS = (" {", " {}", "() {}", ":")
_SHELL = ("; then", "; do", "\nfi", "\ndone", "; then x\nfi", "; do x\ndone", "\n}", ") x;;")

_HEADS: dict[str, tuple[str, ...]] = {
    "c cpp": ("x", '"x"', "x x", "<x>"),
    "css": ("x", "x: 0", ": 0"),
    "html": ("x", ">", "x>", '"x">'),
    "json jsonc": ("0", '"x"', '"x": 0', ": 0", "0,", '"x",', '"x": 0,', ": 0,", ","),
    "php": ("x", "$x", '"x"'),
    "ruby": ("x", "X", '"x"'),
    "rust": ("x", '"x"', "x: x"),
    "java csharp cs": ("x", '"x"', "x x"),
}
_TAILS: dict[str, tuple[str, ...]] = {
    "c cpp csharp cs java php rust": _C,
    "css": (" {", " {}", ";"),
    "go": (*_BLOCKS, " x"),
    "html json jsonc": (),
    "javascript javascriptreact typescript typescriptreact": (*_BLOCKS, ' from "x"'),
    "python": (":", "():", " in x:", " import x"),
    "ruby": ("\nend", " do", " do\nend"),
    "shellscript sh bash": _SHELL,
}


def _by_language(table: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {language: row for languages, row in table.items() for language in languages.split()}


_HEADS_OF, _TAILS_OF = _by_language(_HEADS), _by_language(_TAILS)


def probes(context: InfillContext) -> Iterator[tuple[str, str]]:
    """Pairs of what may stand in the (first) hole and of what may come behind that, the likeliest
    first."""
    heads = _HEADS_OF.get(context.language, ("x", '"x"'))
    begun = [(head, "") for head in heads]
    line_prefix = context.prefix.rpartition("\n")[2]
    for quote in "\"'":
        if quote in line_prefix:  # the hole may be inside a string, which may end later
            begun += [("x", h[2:].replace('"', quote)) for h in heads if h.startswith('"x"')]
    for tail in ("", *_TAILS_OF.get(context.language, ())):
        yield from ((head, end + tail) for head, end in begun)
