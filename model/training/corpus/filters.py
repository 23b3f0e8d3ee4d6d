"""Which files are worth learning from, and what is scrubbed out of those."""

from __future__ import annotations

import re
from pathlib import PurePath

from model.training.spans import is_sound

LANGUAGE_OF_SUFFIX = {
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript",
    ".cjs": "javascript", ".jsx": "javascript", ".ts": "typescript", ".tsx": "typescript",
    ".go": "go", ".rs": "rust", ".java": "java", ".c": "c", ".h": "c", ".cc": "cpp",
    ".cpp": "cpp", ".hpp": "cpp", ".cs": "csharp", ".rb": "ruby", ".php": "php", ".sh": "bash",
    ".html": "html", ".css": "css",
}  # fmt: skip
"""Files with another suffix are left out."""

SKIPPED_FOLDERS = frozenset({
    "node_modules", "vendor", "vendored", "_vendor", "_vendored", "third_party", "thirdparty",
    "dist", "build", "target", "site-packages", "__pycache__", "testdata", "fixtures", "locale",
    "locales", "idlelib", "lib2to3",
})  # fmt: skip
MAX_FILE_BYTES = 400_000
MIN_FILE_CHARS = 200
MAX_LINE_CHARS = 400
"""A longer line is minified or data."""
GENERATED_CHARS = 1000
"""A generator says so within a file's first characters."""
MIN_LETTER_SHARE = 0.3
MAX_DIGIT_SHARE = 0.25
"""Both of the characters that are no white space."""
MAX_LITERAL_LINE_SHARE = 0.5
"""Lines that are nothing but a literal, of a file with at least `LITERAL_LINES` lines."""
LITERAL_LINES = 60

_GENERATED_NAME = re.compile(
    r"(?i).*(_pb2(_grpc)?\.pyi?|\.pb\.(go|cc|h)|[._-]min\.(js|css)|[._-]bundle\.js|"
    r"[._]generated\.\w+|_generated_.*|\.g\.cs|\.designer\.cs|zz_.*\.go)|"
    r"(parsetab|lextab|versioneer|_version)\.py|jquery[^/]*\.js|(moc|qrc|ui)_\w+\.(py|cpp)"
)
_GENERATED = re.compile(
    r"(?im)do not (?:edit|modify)|(?:auto|automatically)[ -]?generated|@generated|"
    r"(?:file|code|parser|module|tables?) (?:(?:is|was|has been) )?generated|"
    r"^\W*generated (?:by|from|with|using)\b"
)
_MIGRATION_NAME = re.compile(r"\d{4}_\w+\.py")
_LITERAL_LINE = re.compile(r"""[\[({]*\s*(?:[bruf]{0,2}["']|[-+]?\d|\\)[^:=(]*[,\])};]*""")

_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^-]*-----END [A-Z ]*PRIVATE KEY-----)?|"
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{22,}|"
    r"\bglpat-[\w-]{20,}|\bxox[baprs]-[A-Za-z0-9-]{10,}|\bsk-[A-Za-z0-9_-]{32,}|"
    r"\b[sr]k_live_[0-9a-zA-Z]{16,}|\bAIza[0-9A-Za-z_-]{35}|\bnpm_[A-Za-z0-9]{36}\b|"
    r"\bpypi-AgE[\w-]{50,}|\bSG\.[\w-]{22}\.[\w-]{43}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
)
"""Shapes of keys and tokens, as secret scanners know them."""
_SECRET_MARKS = (
    "PRIVATE KEY", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-",
    "xox", "sk-", "k_live_", "AIza", "npm_", "pypi-AgE", "SG.", "eyJ",
)  # fmt: skip
"""One of these stands in every match of `_SECRET`, and to look for them first is far faster."""
_ASSIGNED_SECRET = re.compile(
    r"(?i)((?:api_?key|secret(?:_?key)?|access_?token|auth_?token|passw(?:or)?d)['\"]?\s*[:=]\s*"
    r"['\"])((?=[^'\"]*\d)(?=[^'\"]*[a-z])[A-Za-z0-9+/_=-]{20,})(?=['\"])"
)
"""A long literal of letters and digits under a telling name."""
_EMAIL_DOMAIN = (
    r"@(?!example\.|localhost)(?:[\w-]+\.)+(?:com|org|net|edu|gov|io|dev|de|fr|uk|cn|ru|jp|in|eu|"
    r"me|us|ca|nl|ch|se|it|es|pl|br|au|info)\b(?!\s*[(=])"
)
_HAS_EMAIL = re.compile(_EMAIL_DOMAIN)
_EMAIL = re.compile(r"\b[\w.+-]+" + _EMAIL_DOMAIN)
SECRET_PLACEHOLDER, EMAIL_PLACEHOLDER = "REDACTED", "user@example.com"


def is_generated_name(path: PurePath) -> bool:
    """Whether a file's name alone says that a program wrote it, or that it was copied in."""
    if path.parent.name == "migrations" and _MIGRATION_NAME.fullmatch(path.name):
        return True
    return _GENERATED_NAME.fullmatch(path.name) is not None


def why_left_out(text: str, language: str) -> str | None:
    """The reason a file is not trained on, or None."""
    if len(text) < MIN_FILE_CHARS:
        return "too short"
    lines = text.splitlines()
    if max(map(len, lines), default=0) > MAX_LINE_CHARS:
        return "minified or data"
    if _GENERATED.search(text[:GENERATED_CHARS]):
        return "generated"
    if _is_data(text, lines):
        return "data"
    if not is_sound(text, language):
        return "does not parse"
    return None


def _is_data(text: str, lines: list[str]) -> bool:
    shown = len(text) - sum(map(str.isspace, text))
    letters = sum(map(str.isalpha, text))
    digits = sum(map(str.isdigit, text))
    if letters < MIN_LETTER_SHARE * shown or digits > MAX_DIGIT_SHARE * shown:
        return True
    if len(lines) < LITERAL_LINES:
        return False
    literals = sum(_LITERAL_LINE.fullmatch(line.strip()) is not None for line in lines)
    return literals > MAX_LITERAL_LINE_SHARE * len(lines)


def scrub(text: str) -> tuple[str, dict[str, int]]:
    """`text` with secrets and e-mail addresses replaced, and how many there were of each."""
    keys = emails = 0
    if any(mark in text for mark in _SECRET_MARKS):
        text, keys = _SECRET.subn(SECRET_PLACEHOLDER, text)
    text, assigned = _ASSIGNED_SECRET.subn(rf"\g<1>{SECRET_PLACEHOLDER}", text)
    if _HAS_EMAIL.search(text):  # from its "@" on, that is a hundred times as fast
        text, emails = _EMAIL.subn(EMAIL_PLACEHOLDER, text)
    return text, {"secrets": keys + assigned, "e-mail addresses": emails}
