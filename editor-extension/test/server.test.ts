import assert from "node:assert/strict";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { findServer, ServerNotFoundError } from "../src/server.ts";

const home = process.env["HOME"];
let root: string;

/** Make an executable file and return its path. */
function program(...parts: string[]): string {
  const path = join(root, ...parts);
  mkdirSync(join(path, ".."), { recursive: true });
  writeFileSync(path, "");
  chmodSync(path, 0o755);
  return path;
}

before(() => {
  root = mkdtempSync(join(tmpdir(), "mezzotint-"));
  process.env["HOME"] = join(root, "home"); // which os.homedir() reads
});

after(() => {
  process.env["HOME"] = home;
  rmSync(root, { recursive: true });
});

test("the workspace's own environment comes before PATH", () => {
  const onPath = program("usr", "mezzotint");
  const inWorkspace = program("project", ".venv", "bin", "mezzotint");
  const path = join(root, "usr");
  assert.deepEqual(
    findServer({ configured: [], workspaceFolders: [join(root, "project")], path }),
    { command: inWorkspace, args: ["lsp"] },
  );
  assert.deepEqual(findServer({ configured: [], workspaceFolders: [], path }), {
    command: onPath,
    args: ["lsp"],
  });
});

test("a directory or a plain file of that name is passed over", () => {
  mkdirSync(join(root, "first", "mezzotint"), { recursive: true });
  const plain = program("second", "mezzotint");
  chmodSync(plain, 0o644);
  const third = program("third", "mezzotint");
  const path = ["first", "second", "third"].map((name) => join(root, name)).join(":");
  assert.equal(findServer({ configured: [], workspaceFolders: [], path }).command, third);
});

test("the user's ~/.local/bin is searched last", () => {
  const places = { configured: [], workspaceFolders: [], path: "" };
  assert.throws(() => findServer(places), ServerNotFoundError);
  const own = program("home", ".local", "bin", "mezzotint");
  assert.equal(findServer(places).command, own);
});

test("the configured command wins and its variables are replaced", () => {
  const python = program("project", "env", "bin", "python");
  const places = { workspaceFolders: [join(root, "project")], path: "" };
  assert.deepEqual(
    findServer({
      ...places,
      configured: ["${workspaceFolder}/env/bin/python", "-m", "lsp_server", "${userHome}/x"],
    }),
    { command: python, args: ["-m", "lsp_server", join(root, "home", "x")] },
  );
  const own = program("home", "bin", "mezzotint");
  assert.equal(findServer({ ...places, configured: ["~/bin/mezzotint"] }).command, own);
});

test("a configured command that cannot run is named in the error", () => {
  const search = (...configured: string[]) =>
    findServer({ configured, workspaceFolders: [], path: join(root, "usr") });
  assert.throws(() => search("/nowhere/python"), /names \/nowhere\/python/);
  assert.throws(() => search("no-such-program"), /names no-such-program/);
  assert.throws(() => search("bin/mezzotint"), /relative path bin\/mezzotint/);
  assert.throws(() => search(""), /names an empty program/);
  // An untrusted workspace is no place: the variable stays, and names no file.
  assert.throws(() => search("${workspaceFolder}/mezzotint"), ServerNotFoundError);
});
