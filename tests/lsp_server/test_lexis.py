"""Which brackets of a text are code, by patterns, by Pygments' lexers and by the syntax tree."""

from __future__ import annotations

import pytest
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Literal, Name
from tree_sitter import Parser

from lsp_server.check.lexis import BRACKETS, brackets, brackets_of_tree, certain_brackets
from model.grammars import GRAMMARS, load_grammar

SAMPLES = {
    # Every kind of comment and string that a language has, with brackets in them and between.
    "c": "// 1)\nf(\"a)\\\"[\", ')', '\\'');\n/* }\n} */ int a[2] = {1, 2};\n",
    "clojure": '; 1) a\n(defn f [x] ; :)\n  (str "a)\n\\"]" \\( \\) {:a x}))\n',
    "csharp": 'var a = @"C:\\("; // )\nf("a)", \'}\'); /* ] */\nvar b = """\n 1) {a "x"\n """;\n',
    "css": '/* 1) */ a[href="x]"] { b: c(d); }\n',
    "dart": "// 1)\nvar a = 'b)' + \"c]\" + '''\n}''' + \"\"\"(\"\"\"; /* ) */\nf([1], {2});\n",
    "go": "var a = `1)\n\\`; // )\nf(\"]\", ')', []int{1}) /* } */\n",
    "haskell": "-- 1) a\nf' x = g' (')' : \"(\" ++ [x]) {- ) -}\n",
    "java": 'String a = """\n  1) "a" (\n  """; // )\nf("]", \')\', new int[]{1}); /* } */\n',
    "javascript": "// 1)\nf('a)', \"b]\", `c)`, [1], {a: 2}); /* } */\n",
    "json": '{"a)": ["]", {"b\\"}": 1}]}\n',
    "julia": '# 1)\nf("a)", [1], \'(\') #= ) =#\ng("""\n 1) "a"\n""")\n',
    "kotlin": '// 1) a\nval a = """\n 1) "b"\n""" /* ) */\nf("c) ${d}", \')\', { 1 })\n',
    "lua": "-- 1) a\nf('a)', \"b]\", { [[\n1) c]] }) --[[ )\n ) ]] g(1)\n--[==[ ]] ) ]==] h[1]()\n",
    "php": "<?php\n// 1)\nf('a)', \"b]\", [1]); /* } */ # )\nif (a) { b(); }\n",
    "proto3": '// 1)\nmessage A { string b = 1 [default = "]"]; /* } */ }\n',
    "python": "# 1)\nf('a)', \"b]\", '''c\n)''', [1], {2: 3}) # :)\n\"\"\"\n}\n\"\"\"\n",
    "r": "# 1) a\nf(\"a)\", 'b]', c[1]) # )\ng({ 1 })\n",
    "ruby": "# 1)\nf('a)', \"b]\", [1]) { |x| x } # )\n",
    "rust": "// 1)\nf::<'a>(\"a)\n\", ')', [1]); /* ) */ { 2 }\n",
    "scala": '// 1) a\nval a = """\n 1) "b"\n""" /* ) */\nf("c)", \')\', x => { 1 })\n',
    "scss": "// 1) a\n/* } */\n.a { b: f(\"c)\", 'd]'); &:not(.e) { g: h(i); } }\n",
    "shellscript": "# 1)\nf 'a)' \"b]\" $(c) # )\ng() { h; }\n",
    "sql": "-- 1) a\nSELECT f('a)''(', \"b)\") /* ) */ FROM (SELECT 1);\n",
    "swift": '// 1) a\nlet a = """\n 1) "b"\n""" /* ) */\nf("c) \\(d(e)) f", [1], { 2 })\n',
    "terraform": '# 1) a\n// )\na = f("b)", [1]) /* ) */\nc { d = "e) ${g(h)}" }\n',
    "toml": "# 1) a\na = [\"b]\", 'c\\', '''\n1) d''', \"\"\"}\"\"\"]\n[e]\n",
    "zig": "// 1) a\nf(\"a)\", ')', .{1});\nconst b =\n    \\\\ 1) c\n;\n",
}
PYGMENTS = {
    **dict.fromkeys(SAMPLES),
    "javascript": "js",
    "proto3": "protobuf",
    "shellscript": "sh",
}
"""Names of lexers where they are not ours."""
OTHER_NAMES = {
    "c": ("cpp", "cuda-cpp", "objective-c", "objective-cpp"),
    "csharp": ("cs",),
    "javascript": ("javascriptreact", "typescript", "typescriptreact"),
    "json": ("jsonc",),
    "scss": ("less",),
    "shellscript": ("sh", "bash"),
}


def by_pygments(text: str, language: str) -> list[tuple[int, str]]:
    lexer = get_lexer_by_name(PYGMENTS[language] or language)
    opaque = (Comment, Literal, Name.Tag)  # JSON's keys are tags
    return [
        (start + index, character)
        for start, kind, value in lexer.get_tokens_unprocessed(text)
        if not any(kind in one for one in opaque) or kind in Literal.Number
        for index, character in enumerate(value)
        if character in BRACKETS
    ]


@pytest.mark.parametrize("language", SAMPLES)
def test_brackets_in_comments_and_strings_do_not_count(language: str):
    text = SAMPLES[language]
    found = brackets(text, language)
    assert found == by_pygments(text, language)
    assert certain_brackets(text, language) == found
    assert all(certain_brackets(text, name) == found for name in OTHER_NAMES.get(language, ()))


@pytest.mark.parametrize("language", sorted(SAMPLES.keys() & GRAMMARS.keys()))
def test_the_syntax_tree_finds_the_same(language: str):
    text = SAMPLES[language]
    tree = Parser(load_grammar(GRAMMARS[language])).parse(text.encode())
    assert brackets_of_tree(tree) == brackets(text, language)


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("shellscript", "case $1 in\n a) b $(c);;\n (d) e;;\nesac\n", "()"),
        ("shellscript", "a <<X\n1)\nX\n[[ -n ${b} ]] && (( c + $((1)) ))\n", "[[{}]](((())))"),
        ("javascript", "const r = /[)]}/, s = `a) ${b(`c)`)}`;\n", "{()}"),
        ("javascriptreact", "const e = <p>1) a {b} :)</p>;\n", "{}"),
        ("java", 'var a = """\n  1) b\n  """ + (c);\n', "()"),
        ("cpp", 'auto a = R"x()))x" + (b);\n', "()()"),
        ("rust", 'const a: B = (r#"\\")"#); // )\n', "()"),
        ("ruby", "a = <<~X\n 1) #{b(1)}\nX\nc = %w(d e) + [/\\)/]\n", "{()}()[]"),
        ("php", "1) a <?php $b = <<<X\n1) c\nX;\nf(1); ?> d)\n", "()"),
        ("python", "a = f'{b(1)})' + r'''\n)'''\n", "{()}"),
        ("css", "a { b: url(//c?) }\n", "{()}"),
        ("html", "<p>1) a</p>\n", ""),
    ],
)
def test_the_syntax_tree_knows_what_patterns_do_not(language: str, text: str, found: str):
    tree = Parser(load_grammar(GRAMMARS[language])).parse(text.encode())
    assert not tree.root_node.has_error
    assert "".join(bracket for _, bracket in brackets_of_tree(tree)) == found


@pytest.mark.parametrize("language", GRAMMARS)
def test_every_grammars_tree_can_be_asked(language: str):
    tree = Parser(load_grammar(GRAMMARS[language])).parse(b"a (b [c {d} e] f) g \xff")
    assert {bracket for _, bracket in brackets_of_tree(tree)} <= set(BRACKETS)


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("python", "f(\")\", '(')  # (\n]", "()]"),
        ("rust", "fn f<'a>(x: &'a str) { '(' }", "(){}"),
        ("shellscript", "a$#(b) # (", "()"),
        ("kotlin", 'f("a)', "("),  # a string that is still being written
        ("scss", "a { b: url(//c) }", "{}"),
        ("", "don't (do)", "()"),
    ],
)
def test_a_part_of_a_text_may_end_anywhere(language: str, text: str, found: str):
    assert "".join(bracket for _, bracket in brackets(text, language)) == found


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("markdown", "1) a\n```\nf(\n```\n"),
        ("yaml", "a: b) c\n"),
        ("vue", "<p>1) a</p>\n"),
        ("", "1) a\n"),
        ("lua", 'f("a\n)'),
        ("kotlin", 'f("${g("(")}")'),
        ("swift", 'f("\\(g("("))")'),
        ("sql", "f('a\\'(')"),
    ],
)
def test_where_brackets_are_in_doubt_none_are_told(language: str, text: str):
    assert certain_brackets(text, language) is None
