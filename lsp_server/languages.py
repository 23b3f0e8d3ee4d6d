"""What editors call a language, and what file names say: one name for each, VS Code's.

Every client has its own names: VS Code's identifiers, Vim's file types (`typescript.tsx`), eglot's
mode names (`c++-ts-mode`), what people write in settings (`Python`).
"""

from __future__ import annotations

from pathlib import PurePosixPath

from model.grammars import GRAMMARS


def canonical(language_id: str) -> str:
    """VS Code's name of a language that a client or a person names, as far as it is known; else
    the name itself, in lower case."""
    name = language_id.strip().lower()
    for ending in ("-ts-mode", "-mode"):
        name = name.removesuffix(ending)
    if name in _KNOWN:
        return name
    # Of Vim's compounds ("python.django") the first is the language.
    first = name.split(".", 1)[0]
    return _ALIASES.get(name) or _ALIASES.get(first) or (first if first in _KNOWN else name)


def language_called(language_id: str, path: str) -> str:
    """What a document is written in: by what the client calls it or, where nobody knows that name,
    by its file name; "" where neither tells."""
    name = canonical(language_id)
    return name if name in _KNOWN else language_of(path) or name


def language_of(path: str) -> str:
    """The LSP language id that the file name speaks for, or "" when it speaks for none."""
    name = PurePosixPath(path.replace("\\", "/")).name.lower()
    if name in _LANGUAGE_OF_NAME:
        return _LANGUAGE_OF_NAME[name]
    return _LANGUAGE_OF_EXTENSION.get(PurePosixPath(name).suffix, "")


_LANGUAGE_OF_NAME = {
    name: language
    for language, names in {
        "dockerfile": "dockerfile containerfile",
        "makefile": "makefile gnumakefile",
        "cmake": "cmakelists.txt",
        "ruby": "gemfile rakefile podfile vagrantfile",
        "python": "sconstruct sconscript",
        "shellscript": ".bashrc .bash_profile .bash_aliases .profile pkgbuild",
        "jsonc": "tsconfig.json jsconfig.json",
        "go.mod": "go.mod",
    }.items()
    for name in names.split()
}

_LANGUAGE_OF_EXTENSION = {
    extension: language
    for language, extensions in {
        "python": ".py .pyi .pyw",
        "javascript": ".js .mjs .cjs",
        "javascriptreact": ".jsx",
        "typescript": ".ts .mts .cts",
        "typescriptreact": ".tsx",
        "go": ".go",
        "rust": ".rs",
        "java": ".java",
        "c": ".c .h",
        "cpp": ".cc .cpp .cxx .c++ .hh .hpp .hxx .ipp .inl",
        "cuda-cpp": ".cu .cuh",
        "csharp": ".cs .csx",
        "ruby": ".rb .rake .gemspec",
        "php": ".php .phtml",
        "shellscript": ".sh .bash",
        "html": ".html .htm .xhtml",
        "css": ".css",
        "scss": ".scss",
        "less": ".less",
        "json": ".json .webmanifest",
        "jsonc": ".jsonc .code-workspace",
        "yaml": ".yaml .yml",
        "toml": ".toml",
        "xml": ".xml .xsd .svg",
        "markdown": ".md .markdown",
        "restructuredtext": ".rst",
        "sql": ".sql",
        "lua": ".lua",
        "kotlin": ".kt .kts",
        "swift": ".swift",
        "scala": ".scala .sbt",
        "dart": ".dart",
        "elixir": ".ex .exs",
        "erlang": ".erl .hrl",
        "haskell": ".hs",
        "ocaml": ".ml .mli",
        "clojure": ".clj .cljs .cljc",
        "objective-c": ".m",
        "objective-cpp": ".mm",
        "perl": ".pl .pm",
        "powershell": ".ps1 .psm1",
        "r": ".r",
        "julia": ".jl",
        "zig": ".zig",
        "vue": ".vue",
        "svelte": ".svelte",
        "cmake": ".cmake",
        "makefile": ".mk",
        "dockerfile": ".dockerfile",
        "proto3": ".proto",
        "terraform": ".tf",
        "viml": ".vim",
        "ini": ".ini .cfg",
    }.items()
    for extension in extensions.split()
}

_ALIASES = {
    alias: language
    for language, aliases in {
        "python": "py python2 python3 cython",
        "javascript": "js node ecmascript js2 javascript-js",
        "javascriptreact": "jsx javascript.jsx js-jsx js2-jsx rjsx",
        "typescript": "ts",
        "typescriptreact": "tsx typescript.tsx typescript.jsx",
        "go": "golang",
        "rust": "rs rustic",
        "c": "c89 c99",
        "cpp": "c++ cxx cc cplusplus",
        "cuda-cpp": "cuda cu",
        "objective-c": "objc objectivec",
        "objective-cpp": "objcpp objc++ objective-c++",
        "csharp": "cs c#",
        "ruby": "rb enh-ruby",
        "php": "php8",
        "shellscript": "sh bash zsh ksh dash shell shell-script",
        "powershell": "ps1 pwsh",
        "html": "htm xhtml mhtml html-erb",
        "json": "js-json json5",
        "jsonc": "jsonwithcomments json-with-comments",
        "yaml": "yml",
        "markdown": "md gfm",
        "restructuredtext": "rst",
        "dockerfile": "docker containerfile",
        "makefile": "make gnumakefile makefile-gmake makefile-bsdmake",
        "viml": "vim vimscript",
        "ini": "dosini conf-toml properties",
        "terraform": "hcl tf",
        "proto3": "proto protobuf",
        "haskell": "hs",
        "kotlin": "kt",
        "julia": "jl",
        "perl": "pl cperl",
        "r": "ess-r rlang",
        "latex": "tex plaintex",
        "plaintext": "text txt plain fundamental",
    }.items()
    for alias in aliases.split()
}

_KNOWN = frozenset({
    *_LANGUAGE_OF_NAME.values(), *_LANGUAGE_OF_EXTENSION.values(), *_ALIASES.values(),
    *(GRAMMARS.keys() - _ALIASES.keys()),
})  # fmt: skip
