"""The editor's settings, section `mezzotint`, as one frozen dataclass.

Each setting is declared once, with its default, what it may be and what it does. A value that
is not allowed never stops the server: the default stands in, and the user is told why.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Literal, TypeVar, cast

from lsp_server.languages import canonical

SECTION = "mezzotint"
FAR_CHARS = 32_768
"""How much of a document beyond what the model reads says what it repeats, on either side."""

DEFAULT_EXCLUDE = (
    ".env*",
    "*.env",
    ".envrc",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.pkcs12",
    "*.p8",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "*.gpg",
    "*.age",
    "*.ppk",
    "*.ovpn",
    "*.tfvars",
    "*.tfvars.json",
    "*.tfstate*",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    "_netrc",
    ".authinfo*",
    ".npmrc",
    ".yarnrc.yml",
    ".pypirc",
    ".pgpass",
    "pgpass.conf",
    ".pg_service.conf",
    ".my.cnf",
    ".mylogin.cnf",
    ".htpasswd",
    ".git-credentials",
    ".dockercfg",
    ".dockerconfigjson",
    "*.kubeconfig",
    "kubeconfig.y*ml",
    ".vault-token",
    ".vault_pass*",
    ".terraformrc",
    "terraform.rc",
    ".s3cfg",
    ".boto",
    "rclone.conf",
    ".databrickscfg",
    ".dev.vars*",
    "local.settings.json",
    "wp-config.php",
    ".msmtprc",
    ".mbsyncrc",
    ".fetchmailrc",
    ".offlineimaprc",
    ".smbcredentials",
    ".*_history",
    ".secrets",
    "secret.y*ml",
    "secrets.y*ml",
    "secrets.json",
    "secrets.toml",
    "password*.txt",
    "credentials.json",
    "application_default_credentials.json",
    "client_secret*.json",
    "service-account*.json",
    "service_account*.json",
    "serviceAccount*.json",
    "auth.json",
    "kaggle.json",
    "**/.ssh/**",
    "**/.gnupg/**",
    "**/.password-store/**",
    "**/.aws/**",
    "**/.azure/**",
    "**/.kube/**",
    "**/.docker/config.json",
    "**/.config/gcloud/**",
    "**/.config/gh/**",
    "**/.config/hub",
    "**/.config/doctl/**",
    "**/.gem/credentials",
    "**/.cargo/credentials*",
    "**/.m2/settings*.xml",
    "**/secrets/**",
)
"""Files that usually hold credentials."""


class _RefusedError(Exception):
    """A value is not allowed. `found` is its offending part, `instead` what is kept of it."""

    def __init__(self, found: object, instead: object = None) -> None:
        self.found = found
        self.instead = instead


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """What a setting may be."""

    allowed: str
    """In words that go on from "it must be"."""
    read: Callable[[object], object]
    """The setting's value for a raw one; raises `_RefusedError`."""


def _listed(items: Iterable[str], conjunction: str = "or") -> str:
    *others, last = items
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def _flag() -> _Rule:
    def read(raw: object) -> object:
        if isinstance(raw, bool):
            return raw
        raise _RefusedError(raw)

    return _Rule(allowed="true or false", read=read)


def _text(allowed: str, pattern: str) -> _Rule:
    def read(raw: object) -> object:
        if isinstance(raw, str) and re.fullmatch(pattern, raw):
            return raw
        raise _RefusedError(raw)

    return _Rule(allowed=allowed, read=read)


def _choice(*choices: object) -> _Rule:
    def read(raw: object) -> object:
        if isinstance(raw, str) and raw in choices:
            return raw
        raise _RefusedError(raw)

    return _Rule(allowed=_listed(map(json.dumps, choices)), read=read)


def _number(low: float, high: float) -> _Rule:
    def read(raw: object) -> object:
        # Python's bool is an int; a NaN compares as false.
        if isinstance(raw, int | float) and not isinstance(raw, bool) and low <= raw <= high:
            return raw
        raise _RefusedError(raw)

    return _Rule(allowed=f"a number, {low:.10g} to {high:.10g}", read=read)


def _integer(low: int, high: int) -> _Rule:
    number = _number(low, high)

    def read(raw: object) -> object:
        value = number.read(raw)
        # Lua and Emacs Lisp may send 64 as 64.0.
        if isinstance(value, float) and not value.is_integer():
            raise _RefusedError(raw)
        return int(cast("float", value))

    return _Rule(allowed=f"a whole number, {low} to {high}", read=read)


def _or(first: _Rule, literal: str | None) -> _Rule:
    def read(raw: object) -> object:
        return raw if raw == literal else first.read(raw)

    return _Rule(allowed=f"{json.dumps(literal)} or {first.allowed}", read=read)


def _switches() -> _Rule:
    def read(raw: object) -> object:
        if not isinstance(raw, Mapping):
            raise _RefusedError(raw)
        entries = cast("Mapping[object, object]", raw)
        bad = {str(key): value for key, value in entries.items() if not isinstance(value, bool)}
        good = {canonical(str(k)): v for k, v in entries.items() if isinstance(v, bool)}
        if bad:
            # What the user did switch off stays off.
            raise _RefusedError(bad, MappingProxyType(good))
        return MappingProxyType(good)

    return _Rule(allowed='an object of language ids (or "*") with true or false', read=read)


def _globs() -> _Rule:
    def read(raw: object) -> object:
        if not isinstance(raw, list | tuple):
            raise _RefusedError(raw)
        entries = cast("list[object]", raw)
        good = tuple(entry for entry in entries if isinstance(entry, str) and _parts(entry))
        if len(good) < len(entries):
            bad = [e for e in entries if not (isinstance(e, str) and _parts(e))]
            # An entry that cannot be read was to protect something: keep the defaults as well.
            raise _RefusedError(bad, good + DEFAULT_EXCLUDE)
        return good

    return _Rule(allowed="a list of globs", read=read)


def _setting(default: object, rule: _Rule, doc: str, *, key: str = "") -> Any:
    metadata = {"rule": rule, "doc": doc, "key": key}
    if isinstance(default, Mapping):  # unhashable, so dataclasses want a factory
        return field(default_factory=lambda: cast("object", default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineSettings:
    """`mezzotint.deadlineMs`, in milliseconds."""

    auto: float = _setting(
        300, _number(1, 3_600_000), "Time a completion that appears while typing may take."
    )
    manual: float = _setting(
        2000, _number(1, 3_600_000), "Time a completion that was asked for may take."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSettings:
    """`mezzotint.candidates`."""

    auto: int = _setting(1, _integer(1, 16), "How many different completions while typing.")
    manual: int = _setting(3, _integer(1, 16), "How many different completions when asked.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSettings:
    """`mezzotint.context`; sizes in tokens."""

    prefix_tokens: int = _setting(
        768, _integer(16, 32_768), "How much of the document before the cursor the model reads."
    )
    suffix_tokens: int = _setting(
        256, _integer(0, 32_768), "How much of the document after the cursor the model reads."
    )
    open_files: bool = _setting(
        False,
        _flag(),
        "Whether the model also reads parts of the other open documents, where the one at hand "
        "leaves room.",
    )
    whole_file: bool = _setting(
        True,
        _flag(),
        "Whether names and passages that the file repeats weigh in, also where the model does not "
        "read that far.",
    )

    @property
    def far_chars(self) -> int:
        """Text that is given beyond what the model reads, on either side, in characters."""
        return FAR_CHARS if self.whole_file else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """`mezzotint.model`."""

    path: str = _setting(
        "",
        _text("a path, 0.5b, 1.5b or a hub id", r"[^\0]*"),
        "The model: a GGUF file, a checkpoint folder, 0.5b, 1.5b, or a hub id (owner/name or "
        "owner/name@revision). Empty stands for 0.5b. What is not on this machine is offered for "
        "download.",
    )
    device: str = _setting(
        "auto",
        _text('"auto" or a torch device such as "cpu" or "cuda:0"', r"[a-z]+(:\d+)?"),
        "Where the model runs.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float8", "int8"] = _setting(
        "auto",
        _choice("auto", "float32", "bfloat16", "float8", "int8"),
        "Number format of the weights.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """`mezzotint.engine`."""

    url: str = _setting(
        "",
        _text('"" or an address such as "http://127.0.0.1:8765"', r"(https?://\S+|unix:/.+)?"),
        "A running engine to use; empty to start and share a local one.",
    )
    kind: Literal["auto", "mezzotint", "mercury", "llama.cpp", "openai"] = _setting(
        "auto",
        _choice("auto", "mezzotint", "mercury", "llama.cpp", "openai"),
        "What the running engine speaks; it is found out where that is safe.",
    )
    model: str = _setting(
        "",
        _text("a model's name", r"[^\0]*"),
        "Which of the running engine's models is asked; empty for the first that it lists.",
    )
    fim_template: str = _setting(
        "",
        _text(
            '"" or a prompt with {prefix} and {suffix} in it',
            r"(?s)(?=.*\{prefix\})(?=.*\{suffix\}).*|",
        ),
        "The model's infill prompt, for an OpenAI-compatible engine that takes no suffix.",
    )
    allow_plain_http: bool = _setting(
        False, _flag(), "Whether a key may go to another machine unencrypted."
    )
    idle_unload_minutes: float = _setting(
        0, _number(0, 525_600), "Unload the model after this long without work; 0 for never."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """`mezzotint.log`."""

    level: Literal["error", "warning", "info", "debug"] = _setting(
        "warning", _choice("error", "warning", "info", "debug"), "What goes to the log."
    )
    include_source: bool = _setting(False, _flag(), "Whether the log may hold source text.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a user can set. The defaults are those of an editor that sets nothing."""

    enabled: bool = _setting(True, _flag(), "Whether Mezzotint completes at all.")
    languages: Mapping[str, bool] = _setting(
        MappingProxyType({"*": True}),
        _switches(),
        "Switches single languages on or off, by language id or a usual name (python, Python, js); "
        '"*" stands for all others.',
    )
    trigger: Literal["auto", "manual"] = _setting(
        "auto", _choice("auto", "manual"), "Complete while typing, or only when asked."
    )
    debounce_ms: float | Literal["adaptive"] = _setting(
        "adaptive",
        _or(_number(0, 60_000), "adaptive"),
        "Pause in the typing, in milliseconds, to wait for before completing.",
    )
    deadline_ms: DeadlineSettings = field(default_factory=DeadlineSettings)
    max_new_tokens: int = _setting(64, _integer(1, 4096), "The longest completion, in tokens.")
    steps: int | None = _setting(
        None,
        _or(_integer(1, 4096), None),
        "Denoising steps of a completion, of diffusion models; null for as many as the text needs.",
    )
    candidates: CandidateSettings = field(default_factory=CandidateSettings)
    min_confidence: float = _setting(
        0.3,
        _number(0, 1),
        "Show nothing unasked whose first line the model gives a lower probability of being "
        "exactly right. A line below it has to be right more often than not, too.",
    )
    syntax_check: Literal["strict", "warn", "off"] = _setting(
        "strict",
        _choice("strict", "warn", "off"),
        "Completions that add a syntax error: drop them, rank them last, or do not check.",
    )
    max_repair_rounds: int = _setting(
        2,
        _integer(0, 8),
        "How often a completion is written again from where it adds a syntax error.",
    )
    hole_hints: Literal["off", "explicit", "all"] = _setting(
        "explicit",
        _choice("off", "explicit", "all"),
        "Hints where there is a hole to fill: nowhere, at the markers that mean nothing else "
        "(`<FILL>`, `pass  # hole`), or at `...` and TODO comments as well.",
    )
    context: ContextSettings = field(default_factory=ContextSettings)
    exclude: tuple[str, ...] = _setting(
        DEFAULT_EXCLUDE,
        _globs(),
        "Globs of files whose text never reaches the model. One without a slash stands for any "
        "file or folder of that name, and a folder for all that is in it.",
    )
    max_file_kb: int = _setting(
        1024, _integer(1, 1_048_576), "The largest file to complete in, in kB.", key="maxFileKB"
    )
    model: ModelSettings = field(default_factory=ModelSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    log: LogSettings = field(default_factory=LogSettings)

    def enabled_for(self, language: str) -> bool:
        """Whether to complete in documents of this LSP language id.

        A language that is not named follows `"*"`, which is true unless set.
        """
        return self.enabled and self.languages.get(language, self.languages.get("*", True))

    def excludes(self, path: str) -> bool:
        """Whether the text of the file at `path` must not reach the model.

        Every glob is tried, ignoring case, at each folder of the path. When in doubt, yes.
        """
        parts = _parts(path)
        try:
            return any(
                _matches(_parts(glob), parts[start:])
                for glob in self.exclude
                for start in range(len(parts))
            )
        except re.error:  # a glob such as [z-a], which some Python versions cannot translate
            return True


def _parts(path: str) -> tuple[str, ...]:
    """The parts of a path or glob, without a root, in one case and one Unicode form."""
    # What is inside an archive follows "::" (zip.vim) or "!" (jar:).
    path = path.replace("\\", "/").replace("::", "/").replace("!/", "/")
    path = unicodedata.normalize("NFC", path).casefold()
    return tuple(part for part in PurePosixPath(path).parts if part.strip("/"))


def _matches(glob: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether `glob` names the file at `parts` or a folder on the way to it."""
    if not glob:
        return True
    if glob[0] == "**":
        return any(_matches(glob[1:], parts[skipped:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], glob[0]) and _matches(glob[1:], parts[1:])


def parse_settings(raw: object) -> tuple[Settings, tuple[str, ...]]:
    """The settings an editor sent as JSON, and one sentence for each problem in them.

    Never raises: None stands for no settings, and whatever is not allowed for its default.
    """
    problems: list[str] = []
    settings = Settings() if raw is None else _parse_group(Settings, raw, SECTION, problems)
    return settings, tuple(problems)


_G = TypeVar("_G")


def _parse_group(group: type[_G], raw: object, path: str, problems: list[str]) -> _G:
    members = {_key(member): member for member in fields(cast("Any", group))}
    if not isinstance(raw, Mapping):
        problems.append(f"{path} is {_shown(raw)}; it must be an object with {_listed(members)}")
        return group()
    values: dict[str, object] = {}
    for key, value in cast("Mapping[object, object]", raw).items():
        member = members.get(str(key))
        if member is None:
            problems.append(_unknown(str(key), path, list(members)))
        elif subgroup := _subgroup(member):
            values[member.name] = _parse_group(subgroup, value, f"{path}.{key}", problems)
        else:
            values[member.name] = _parse_value(member, value, f"{path}.{key}", problems)
    return group(**values)


def _parse_value(member: Field[Any], raw: object, path: str, problems: list[str]) -> object:
    rule = _rule(member)
    try:
        return rule.read(raw)
    except _RefusedError as refused:
        if refused.instead is None:
            problem = f"{path} is {_shown(raw)}; it must be {rule.allowed}: its default is used"
        else:
            problem = f"{path} holds {_shown(refused.found)}; it must be {rule.allowed}"
        problems.append(problem)
        return _default(member) if refused.instead is None else refused.instead


def _unknown(key: str, path: str, known: list[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    close = get_close_matches(key.lower(), by_lower, n=1)
    hint = f" (did you mean {by_lower[close[0]]}?)" if close else ""
    return f"{path} has no setting {_shown(key)}{hint}; it has {_listed(known, 'and')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingDescription:
    """One setting, for documentation and for editors' own lists of settings."""

    default: object
    """As JSON has it."""
    allowed: str
    doc: str


def describe_settings() -> dict[str, SettingDescription]:
    """Every setting by its dotted key without the section, such as `deadlineMs.auto`."""
    return _describe_group(Settings, "")


def _describe_group(group: type[Any], path: str) -> dict[str, SettingDescription]:
    described: dict[str, SettingDescription] = {}
    for member in fields(group):
        key = path + _key(member)
        if subgroup := _subgroup(member):
            described |= _describe_group(subgroup, f"{key}.")
        else:
            described[key] = SettingDescription(
                default=_as_json(_default(member)),
                allowed=_rule(member).allowed,
                doc=member.metadata["doc"],
            )
    return described


def _key(member: Field[Any]) -> str:
    """The member's name in the editor."""
    first, *rest = member.name.split("_")
    return member.metadata.get("key") or first + "".join(word.capitalize() for word in rest)


def _rule(member: Field[Any]) -> _Rule:
    return member.metadata["rule"]


def _subgroup(member: Field[Any]) -> type[Any] | None:
    factory: object = member.default_factory
    return factory if isinstance(factory, type) and is_dataclass(factory) else None


def _default(member: Field[Any]) -> object:
    return member.default_factory() if callable(member.default_factory) else member.default


def _as_json(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    return list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value


_SHOWN_CHARS = 60


def _shown(value: object) -> str:
    text = json.dumps(value, default=repr, skipkeys=True, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
