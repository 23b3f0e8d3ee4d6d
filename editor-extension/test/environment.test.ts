import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, beforeEach, test } from "node:test";
import { readyServer, setUp } from "../src/environment.ts";
import { findPython } from "../src/python.ts";
import { diagnose, SetupError } from "../src/setup-error.ts";

const roots: string[] = [];
let root: string;
let wheel: string;
let calls: string;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "mezzotint-"));
  roots.push(root);
  wheel = join(root, "mezzotint.whl");
  writeFileSync(wheel, "the wheel");
  calls = join(root, "calls");
});

after(() => {
  for (const directory of roots) {
    rmSync(directory, { recursive: true });
  }
});

/** Make a program called `python3` on the path of `environment()`. */
function python(answer: string, install = "exit 0"): void {
  const directory = join(root, "bin");
  mkdirSync(directory, { recursive: true });
  const script = `#!/bin/sh
echo "$*" >> ${calls}
case "$*" in
  *" -c "*) echo "${answer}" ;;
  *" venv "*) for last; do :; done; mkdir -p "$last/bin" && cp "$0" "$last/bin/python" ;;
  *" pip "*) ${install} ;;
esac
`;
  writeFileSync(join(directory, "python3"), script);
  chmodSync(join(directory, "python3"), 0o755);
}

const fit = (): string => `3 11 1 ${join(root, "bin", "python3")}`;
/** The system's programs that the script above calls, but none of its Pythons. */
const environment = (): NodeJS.ProcessEnv => ({ PATH: `${join(root, "bin")}:/bin-without-python` });

function make(signal = new AbortController().signal, steps: string[] = []): ReturnType<typeof setUp> {
  return setUp({
    directory: join(root, "storage", "environment"),
    wheel,
    environment: { PATH: `${join(root, "bin")}:/usr/bin:/bin` },
    signal,
    onStep: (step) => steps.push(step),
    onOutput: () => undefined,
  });
}

test("an environment is made once, and again for another wheel", async () => {
  python(fit());
  const server = await make();
  const directory = join(root, "storage", "environment");
  assert.deepEqual(server, {
    command: join(directory, "bin", "python"),
    args: ["-I", "-m", "lsp_server", "lsp"],
  });
  assert.deepEqual(await readyServer(directory, wheel), server);
  const made = readFileSync(calls, "utf8");
  await make();
  assert.equal(readFileSync(calls, "utf8"), made, "what is ready was made again");
  writeFileSync(wheel, "a newer wheel");
  assert.equal(await readyServer(directory, wheel), undefined);
  await make();
  const since = readFileSync(calls, "utf8").slice(made.length);
  assert.match(since, /pip install .*mezzotint\.whl/);
  assert.doesNotMatch(since, / venv /);
});

test("without a Python the error says so", async () => {
  await assert.rejects(findPython(environment()), /needs Python 3\.10 or later, and there is none/);
});

test("an old Python, or one that lacks venv, is named", async () => {
  python(`3 8 1 /usr/bin/python3`);
  await assert.rejects(findPython(environment()), /\/usr\/bin\/python3 is Python 3\.8/);
  python(`3 11 0 /usr/bin/python3`);
  await assert.rejects(findPython(environment()), /apt install python3-venv/);
});

test("a failed installation leaves no environment that counts as ready, and is tried again", async () => {
  python(fit(), "echo 'Failed to establish a new connection' >&2; exit 1");
  await assert.rejects(make(), (error) => error instanceof SetupError && error.problem === "offline");
  const directory = join(root, "storage", "environment");
  assert.equal(await readyServer(directory, wheel), undefined);
  assert.ok(!existsSync(`${directory}.lock`));
  rmSync(directory, { recursive: true });
  python(fit());
  await make();
});

test("cancelling ends the program that runs", { timeout: 20_000 }, async () => {
  python(fit(), "exec sleep 60");
  const abort = new AbortController();
  const steps: string[] = [];
  const made = make(abort.signal, steps);
  while (!existsSync(calls) || !readFileSync(calls, "utf8").includes(" pip ")) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  abort.abort();
  await assert.rejects(made, (error) => error instanceof SetupError && error.problem === "cancelled");
  assert.ok(steps.includes("downloading PyTorch"));
});

test("two windows make one environment", async () => {
  python(fit());
  await Promise.all([make(), make()]);
  assert.equal(readFileSync(calls, "utf8").match(/ venv /g)?.length, 1);
});

test("the lock of a dead window does not count", async () => {
  python(fit());
  mkdirSync(join(root, "storage"));
  writeFileSync(join(root, "storage", "environment.lock"), "999999999");
  await make();
});

test("a failure is told apart by what pip says", () => {
  assert.equal(diagnose("OSError: [Errno 28] No space left on device").problem, "disk");
  assert.equal(diagnose("Temporary failure in name resolution").problem, "offline");
  const other = diagnose("Collecting x\nERROR: x needs another Python\n");
  assert.equal(other.problem, "failed");
  assert.match(other.message, /x needs another Python/);
});
