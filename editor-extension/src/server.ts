/**
 * Where the language server is. Plain Node, no `vscode`: the callers say which places may be
 * searched, so that an untrusted workspace cannot name a program to run.
 */
import { accessSync, constants, statSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, isAbsolute, join, resolve } from "node:path";

const WINDOWS = process.platform === "win32";
const EXECUTABLE = WINDOWS ? "mezzotint.exe" : "mezzotint";
const VENV_PROGRAMS = WINDOWS ? "Scripts" : "bin";

/** The program to run and its arguments. */
export interface ServerCommand {
  readonly command: string;
  readonly args: readonly string[];
}

export interface SearchPlaces {
  /** The setting `mezzotint.server.command`; empty: search. */
  readonly configured: readonly string[];
  /** Folders whose virtual environments may be used; none in an untrusted workspace. */
  readonly workspaceFolders: readonly string[];
  /** Directories to search after those, as in the variable PATH. */
  readonly path: string;
}

/** No server was found. The message is one sentence for the user. */
export class ServerNotFoundError extends Error {}

/**
 * Find the language server: the configured command, else the `mezzotint` of a workspace's virtual
 * environment, else the one on PATH, else the one that `uv tool`, `pipx` or `pip --user` put in
 * ~/.local/bin (an editor started from a dock often lacks that directory on its PATH).
 *
 * @throws ServerNotFoundError
 */
export function findServer(places: SearchPlaces): ServerCommand {
  if (places.configured.length > 0) {
    return configuredServer(places);
  }
  const directories = [
    ...places.workspaceFolders.flatMap((folder) =>
      [".venv", "venv"].map((name) => join(folder, name, VENV_PROGRAMS)),
    ),
    ...pathDirectories(places.path),
    join(homedir(), ".local", "bin"),
  ];
  const command = findExecutable(EXECUTABLE, directories);
  if (command === undefined) {
    throw new ServerNotFoundError(
      "Mezzotint's language server is not installed: there is no `mezzotint` in the workspace's " +
        ".venv or on PATH.",
    );
  }
  return { command, args: ["lsp"] };
}

function configuredServer({ configured, workspaceFolders, path }: SearchPlaces): ServerCommand {
  const [program = "", ...args] = configured.map((part) => expand(part, workspaceFolders));
  const isPath = /[/\\]/.test(program);
  if (isPath && !isAbsolute(program)) {
    throw new ServerNotFoundError(
      `mezzotint.server.command begins with the relative path ${program}; ` +
        "make it absolute or begin it with ${workspaceFolder}.",
    );
  }
  const command = isPath ? findExecutable(program, [""]) : findOnPath(program, path);
  if (command === undefined) {
    throw new ServerNotFoundError(
      `mezzotint.server.command names ${program || "an empty program"}, ` +
        "which is not a program that can be run.",
    );
  }
  return { command, args };
}

function expand(part: string, workspaceFolders: readonly string[]): string {
  return part
    .replace(/^~(?=$|[/\\])/, () => homedir())
    .replaceAll("${userHome}", () => homedir())
    .replaceAll("${workspaceFolder}", (variable) => workspaceFolders[0] ?? variable);
}

function findOnPath(program: string, path: string): string | undefined {
  const name = WINDOWS && !program.includes(".") ? `${program}.exe` : program;
  return findExecutable(name, pathDirectories(path));
}

function pathDirectories(path: string): string[] {
  return path.split(delimiter).filter(isAbsolute);
}

function findExecutable(name: string, directories: readonly string[]): string | undefined {
  return directories.map((directory) => resolve(directory, name)).find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}
