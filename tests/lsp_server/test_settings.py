from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsp_server.settings import DEFAULT_EXCLUDE, Settings, describe_settings, parse_settings

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def nested(dotted_key: str, value: object) -> dict[str, object]:
    key, _, rest = dotted_key.partition(".")
    return {key: nested(rest, value) if rest else value}


def field_of(settings: Settings, path: str) -> object:
    value: object = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_settings_are_the_defaults_without_complaint(nothing: object):
    assert parse_settings(nothing) == (Settings(), ())


def test_defaults_are_the_documented_ones():
    settings = Settings()
    assert (settings.enabled, settings.trigger, settings.debounce_ms) == (True, "auto", "adaptive")
    assert (settings.deadline_ms.auto, settings.deadline_ms.manual) == (300, 2000)
    assert (settings.max_new_tokens, settings.steps) == (64, None)
    assert (settings.candidates.auto, settings.candidates.manual) == (1, 3)
    assert (settings.min_confidence, settings.syntax_check) == (0.3, "strict")
    assert (settings.context.prefix_tokens, settings.context.suffix_tokens) == (768, 256)
    assert settings.context.open_files is False
    assert settings.context.whole_file is True
    assert settings.max_file_kb == 1024
    assert (settings.model.path, settings.model.device, settings.model.dtype) == (
        "",
        "auto",
        "auto",
    )
    engine = settings.engine
    assert (engine.url, engine.kind, engine.model, engine.fim_template) == ("", "auto", "", "")
    assert (engine.allow_plain_http, engine.idle_unload_minutes) == (False, 0)
    assert (settings.log.level, settings.log.include_source) == ("warning", False)


@pytest.mark.parametrize(
    ("key", "raw", "path", "value"),
    [
        ("enabled", False, "enabled", False),
        ("trigger", "manual", "trigger", "manual"),
        ("debounceMs", 75.5, "debounce_ms", 75.5),
        ("debounceMs", "adaptive", "debounce_ms", "adaptive"),
        ("deadlineMs.manual", 5000, "deadline_ms.manual", 5000),
        ("maxNewTokens", 128.0, "max_new_tokens", 128),
        ("steps", 4, "steps", 4),
        ("steps", None, "steps", None),
        ("candidates.auto", 2, "candidates.auto", 2),
        ("minConfidence", 0.5, "min_confidence", 0.5),
        ("syntaxCheck", "warn", "syntax_check", "warn"),
        ("context.suffixTokens", 0, "context.suffix_tokens", 0),
        ("context.openFiles", True, "context.open_files", True),
        ("context.wholeFile", False, "context.whole_file", False),
        ("exclude", ["*.sql"], "exclude", ("*.sql",)),
        ("maxFileKB", 2048, "max_file_kb", 2048),
        ("model.path", "/models/mine", "model.path", "/models/mine"),
        ("model.device", "cuda:1", "model.device", "cuda:1"),
        ("engine.url", "unix:/run/engine.sock", "engine.url", "unix:/run/engine.sock"),
        ("engine.kind", "llama.cpp", "engine.kind", "llama.cpp"),
        (
            "engine.fimTemplate",
            "<P>{prefix}<S>{suffix}",
            "engine.fim_template",
            "<P>{prefix}<S>{suffix}",
        ),
        ("log.includeSource", True, "log.include_source", True),
    ],
)
def test_an_allowed_value_is_taken(key: str, raw: object, path: str, value: object):
    settings, problems = parse_settings(nested(key, raw))
    assert problems == ()
    assert field_of(settings, path) == value


@pytest.mark.parametrize(
    ("key", "raw", "found", "allowed"),
    [
        ("enabled", "yes", '"yes"', "true or false"),
        ("enabled", 1, "1", "true or false"),
        ("trigger", "always", '"always"', '"auto" or "manual"'),
        ("debounceMs", -1, "-1", '"adaptive" or a number'),
        ("debounceMs", float("nan"), "NaN", '"adaptive" or a number'),
        ("deadlineMs", 300, "300", "an object with auto or manual"),
        ("deadlineMs.auto", 0, "0", "a number, 1 to"),
        ("maxNewTokens", True, "true", "a whole number, 1 to 4096"),
        ("maxNewTokens", 64.5, "64.5", "a whole number, 1 to 4096"),
        ("maxNewTokens", 10**400, "1000", "a whole number, 1 to 4096"),
        ("steps", 0, "0", "null or a whole number"),
        ("candidates.manual", 17, "17", "1 to 16"),
        ("minConfidence", 1.5, "1.5", "0 to 1"),
        ("syntaxCheck", None, "null", '"strict", "warn" or "off"'),
        ("exclude", "*.sql", '"*.sql"', "a list of globs"),
        ("model.dtype", "int3", '"int3"', '"bfloat16"'),
        ("model.device", "", '""', "torch device"),
        ("engine.url", "localhost", '"localhost"', "http://"),
        ("engine.kind", "ollama", '"ollama"', '"openai"'),
        ("engine.fimTemplate", "{prefix}", '"{prefix}"', "{suffix}"),
        ("log", [], "[]", "an object with level or includeSource"),
    ],
)
def test_a_refused_value_falls_back_and_is_explained_in_one_sentence(
    key: str, raw: object, found: str, allowed: str
):
    settings, problems = parse_settings(nested(key, raw))
    assert settings == Settings()
    (problem,) = problems
    assert problem.startswith(f"mezzotint.{key} is {found}")
    assert allowed in problem


def test_one_bad_value_leaves_the_others_in_force():
    settings, problems = parse_settings({"deadlineMs": {"auto": "fast", "manual": 900}, "steps": 2})
    assert (settings.deadline_ms.auto, settings.deadline_ms.manual) == (300, 900)
    assert settings.steps == 2
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("raw", "group", "suggestion", "known"),
    [
        ({"debouncems": 5}, "mezzotint", "debounceMs", "maxNewTokens"),
        ({"candidates": {"automatic": 1}}, "mezzotint.candidates", "auto", "manual"),
    ],
)
def test_an_unknown_key_lists_the_known_and_suggests_the_closest(
    raw: object, group: str, suggestion: str, known: str
):
    settings, (problem,) = parse_settings(raw)
    assert settings == Settings()
    assert problem.startswith(f"{group} has no setting ")
    assert f"did you mean {suggestion}?" in problem
    assert known in problem


@given(json_values)
def test_no_json_value_makes_parsing_raise(raw: object):
    parse_settings(raw)


@given(st.sampled_from(sorted(describe_settings())), json_values)
def test_no_json_value_of_a_known_key_makes_parsing_raise(key: str, raw: object):
    settings, problems = parse_settings(nested(key, raw))
    assert len(problems) <= 1
    assert settings.excludes("/home/ada/.env") or key == "exclude"


def test_every_described_default_is_an_allowed_value_and_changes_nothing():
    described = describe_settings()
    assert {"enabled", "deadlineMs.auto", "maxFileKB", "log.includeSource"} <= described.keys()
    for key, setting in described.items():
        assert parse_settings(nested(key, setting.default)) == (Settings(), ())
        assert setting.doc.endswith(".")


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Settings().enabled = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        Settings().languages["*"] = False  # type: ignore[index]


@pytest.mark.parametrize(
    ("raw", "language", "enabled"),
    [
        ({}, "python", True),
        ({}, "", True),
        ({"languages": {"python": False}}, "python", False),
        ({"languages": {"python": False}}, "go", True),
        ({"languages": {"*": False, "go": True}}, "python", False),
        ({"languages": {"*": False, "go": True}}, "go", True),
        ({"enabled": False, "languages": {"go": True}}, "go", False),
    ],
)
def test_a_language_follows_its_own_switch_then_the_star(raw: object, language: str, enabled: bool):
    settings, problems = parse_settings(raw)
    assert problems == ()
    assert settings.enabled_for(language) is enabled


def test_a_bad_language_switch_leaves_the_switched_off_ones_off():
    settings, (problem,) = parse_settings({"languages": {"go": False, "rust": "off"}})
    assert not settings.enabled_for("go")
    assert settings.enabled_for("rust")
    assert problem.startswith('mezzotint.languages holds {"rust": "off"}')


@pytest.mark.parametrize(
    "path",
    [
        "/home/ada/app/.env",
        "/home/ada/app/.env.production",
        "/home/ada/app/.ENV",
        "C:\\Users\\ada\\Server.PEM",
        "/home/ada/id_rsa",
        "/home/ada/.ssh/config",
        "secrets/db.yaml",
        "/srv/app/Secrets/deep/down/db.yaml",
        ".env",
        "/srv/app/prod.env",
        "/home/ada/app/.envrc",
        "/home/ada/.npmrc",
        "/home/ada/.pypirc",
        "/home/ada/.git-credentials",
        "/home/ada/putty/work.ppk",
        "/home/ada/.kube/config",
        "/home/ada/.docker/config.json",
        "infra/live.tfvars",
        "/home/ada/backup.zip::app/.env",
        "/home/ada/backup.zip::.env",
        "/home/ada/lib.jar!/.npmrc",
        "/home/ada/.cargo/credentials.toml",
        "/home/ada/.m2/settings.xml",
        "/home/ada/.password-store/mail",
        "/home/ada/.authinfo.gpg",
        "/home/ada/.bash_history",
        "/home/ada/AuthKey_1.p8",
        "/home/ada/passwords.txt",
        "/srv/app/composer/auth.json",
        "/srv/app/secrets.yml",
        "/srv/app/k8s/secret.yaml",
        "/srv/app/.dev.vars.production",
        "/srv/app/client_secret_1.apps.json",
        "/srv/app/serviceAccountKey.json",
        "/srv/infra/terraform.tfstate.backup",
        "/srv/infra/live.auto.tfvars.json",
        "/srv/infra/kubeconfig.yaml",
    ],
)
def test_files_that_hold_credentials_are_excluded_by_default(path: str):
    assert Settings().excludes(path)


@pytest.mark.parametrize(
    "path",
    [
        "/home/ada/app/main.py",
        "/home/ada/environment.py",
        "/a/keys.py",
        "/a/my_secrets.py",
        "/a/secrets.py",
        "/srv/pkg/kubeconfig/kubeconfig.go",
        "/srv/app/secret.go",
        "/srv/app/auth.py",
        "",
    ],
)
def test_ordinary_files_are_not_excluded(path: str):
    assert not Settings().excludes(path)


@pytest.mark.parametrize(
    ("glob", "path", "excluded"),
    [
        ("*.sql", "/db/dump.SQL", True),
        ("vendor", "/app/vendor/lib/a.py", True),
        ("vendor/", "/app/vendor/lib/a.py", True),
        ("app/vendor", "/srv/app/vendor/a.py", True),
        ("app/vendor", "/srv/app/src/vendor/a.py", False),
        ("app/**/*.py", "/srv/app/a.py", True),
        ("app/**/*.py", "/srv/app/b/c/a.py", True),
        ("/srv/app/*.py", "/srv/app/a.py", True),
        ("a*.py", "/a/b.py", False),
        ("caf\u00e9", "/x/cafe\u0301/a.py", True),
        ("[z-a].py", "/x/b.py", None),
    ],
)
def test_globs_match_runs_of_path_parts(glob: str, path: str, excluded: bool | None):
    verdict = Settings(exclude=(glob,)).excludes(path)
    # An untranslatable range excludes, or matches nothing, by Python version; it never raises.
    assert excluded is None or verdict is excluded


def test_own_globs_replace_the_defaults():
    settings, _ = parse_settings({"exclude": []})
    assert not settings.excludes("/home/ada/.env")


@pytest.mark.parametrize("bad", [3, "", "/", None])
def test_an_unreadable_glob_keeps_the_defaults_beside_the_readable_ones(bad: object):
    settings, (problem,) = parse_settings({"exclude": ["*.sql", bad]})
    assert settings.exclude == ("*.sql", *DEFAULT_EXCLUDE)
    assert problem.startswith("mezzotint.exclude holds [")
    assert not settings.excludes("/home/ada/main.py")
