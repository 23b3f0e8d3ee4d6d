/** Which Python can make an environment. Plain Node, no `vscode`. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { SetupError } from "./setup-error.ts";

const run = promisify(execFile);

/** What `pyproject.toml` asks for. */
export const OLDEST: readonly [number, number] = [3, 10];

/** The usual name first: it is what people upgrade. */
const CANDIDATES: readonly (readonly string[])[] =
  process.platform === "win32"
    ? [["py", "-3"], ["python"], ["python3"]]
    : [
        ["python3"],
        ...["3.13", "3.12", "3.11", "3.10"].map((version) => [`python${version}`]),
        ["python"],
      ];

const QUESTION = `
import sys, importlib.util
have = all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))
print(sys.version_info[0], sys.version_info[1], int(have), sys.executable)
`;

/**
 * The first Python on the program path that is new enough and can make environments.
 *
 * @throws SetupError saying what was found instead.
 */
export async function findPython(
  environment: NodeJS.ProcessEnv,
  candidates = CANDIDATES,
): Promise<string> {
  const unfit: string[] = [];
  for (const [program = "", ...args] of candidates) {
    const answer = await ask(program, args, environment);
    if (answer === undefined) {
      continue;
    }
    const [major = 0, minor = 0, have = 0] = answer.split(" ", 3).map(Number);
    const path = answer.split(" ").slice(3).join(" ");
    const isNewEnough = major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1]);
    if (isNewEnough && have) {
      return path;
    }
    unfit.push(
      isNewEnough
        ? `${path} lacks venv (on Debian and Ubuntu: apt install python3-venv)`
        : `${path} is Python ${major}.${minor}`,
    );
  }
  const found = unfit.length > 0 ? ` What is here: ${[...new Set(unfit)].join("; ")}.` : "";
  throw new SetupError(
    "python",
    `Mezzotint needs Python ${OLDEST.join(".")} or later, and there is none on PATH.${found} ` +
      "Install one and restart the server.",
  );
}

async function ask(
  program: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
): Promise<string | undefined> {
  try {
    const options = { env, timeout: 20_000, encoding: "utf8" as const };
    const { stdout } = await run(program, [...args, "-I", "-c", QUESTION], options);
    return stdout.trim();
  } catch {
    return undefined; // not there, or not a Python
  }
}
