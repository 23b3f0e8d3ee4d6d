/**
 * The extension's own Python environment, made from the wheel that comes with it. Plain Node, no
 * `vscode`.
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, existsSync, readFileSync } from "node:fs";
import { mkdir, rm, statfs, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { createInterface } from "node:readline";
import { pipeline } from "node:stream/promises";
import { SetupLock } from "./lock.ts";
import { findPython } from "./python.ts";
import type { ServerCommand } from "./server.ts";
import { diagnose, SetupError } from "./setup-error.ts";

const WINDOWS = process.platform === "win32";
const GB = 1e9;

/** As in pyproject.toml, which a test compares. */
export const TORCH = "torch>=2.6,<2.14";
const TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu";

export interface Setup {
  /** Where the environment lies, or is to lie. */
  readonly directory: string;
  /** The wheel to install. */
  readonly wheel: string;
  readonly environment: NodeJS.ProcessEnv;
  /** Cancels, leaving nothing half-made. */
  readonly signal: AbortSignal;
  /** Told what is being done, in a few words. */
  readonly onStep: (step: string) => void;
  /** Told every line that a program prints. */
  readonly onOutput: (line: string) => void;
}

/** The server of the environment in `directory`, if it is complete and of this wheel. */
export async function readyServer(
  directory: string,
  wheel: string,
): Promise<ServerCommand | undefined> {
  const marker = markerOf(directory);
  if (!existsSync(marker) || readFileSync(marker, "utf8") !== (await digest(wheel))) {
    return undefined;
  }
  // -I: neither PYTHONPATH nor the user's packages come between it and what was installed.
  return { command: pythonOf(directory), args: ["-I", "-m", "lsp_server", "lsp"] };
}

/**
 * Make the environment, or bring it up to this wheel. Two windows never do so at once.
 *
 * @throws SetupError
 */
export async function setUp(setup: Setup): Promise<ServerCommand> {
  await mkdir(setup.directory, { recursive: true });
  const lock = new SetupLock(`${setup.directory}.lock`);
  await lock.acquire(setup.signal, () => setup.onStep("another window is setting up"));
  try {
    const made = await readyServer(setup.directory, setup.wheel);
    return made ?? (await install(setup));
  } finally {
    await lock.release();
  }
}

async function install(setup: Setup): Promise<ServerCommand> {
  const { directory, wheel, onStep } = setup;
  const hasNvidia = findsNvidia(setup.environment);
  await checkSpace(directory, hasNvidia ? 8 * GB : 2.5 * GB);
  await rm(markerOf(directory), { force: true });
  if (!existsSync(pythonOf(directory))) {
    onStep("making a Python environment");
    const python = await findPython(setup.environment);
    await run(setup, python, ["-I", "-m", "venv", "--clear", directory]);
  }
  await installTorch(setup, hasNvidia);
  onStep("installing the language server");
  await pip(setup, [wheel]);
  // A wheel of the same version, as while developing, counts as installed already.
  await pip(setup, ["--force-reinstall", "--no-deps", wheel]);
  await writeFile(markerOf(directory), await digest(wheel));
  const server = await readyServer(directory, wheel);
  if (server === undefined) {
    throw new SetupError("failed", `${wheel} changed while it was installed; restart the server.`);
  }
  return server;
}

/** Without an NVIDIA card, Linux's default build would be several GB of libraries for nothing. */
async function installTorch(setup: Setup, hasNvidia: boolean): Promise<void> {
  setup.onStep("downloading PyTorch");
  if (process.platform !== "linux" || hasNvidia) {
    return pip(setup, [TORCH]);
  }
  try {
    await pip(setup, ["--retries", "1", "--index-url", TORCH_CPU_INDEX, TORCH]);
  } catch (error) {
    if (!(error instanceof SetupError) || error.problem === "cancelled") {
      throw error;
    }
    setup.onOutput("PyTorch's CPU index cannot be used; taking the default build.");
    await pip(setup, [TORCH]);
  }
}

function pip(setup: Setup, args: readonly string[]): Promise<void> {
  const always = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"];
  return run(setup, pythonOf(setup.directory), ["-I", "-m", "pip", "install", ...always, ...args]);
}

async function run(setup: Setup, program: string, args: readonly string[]): Promise<void> {
  setup.onOutput(`$ ${[program, ...args].join(" ")}`);
  const child = spawn(program, args, {
    env: setup.environment,
    signal: setup.signal,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const output: string[] = [];
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on("line", (line) => {
      output.push(line);
      setup.onOutput(line);
      const step = /^\s*(Collecting|Downloading|Installing) ([^\s;(]+)/.exec(line);
      if (step !== null) {
        setup.onStep(`${step[1]?.toLowerCase()} ${step[2]?.split("/").at(-1)}`);
      }
    });
  }
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  }).catch((error: unknown) => {
    output.push(String(error));
    return null;
  });
  if (setup.signal.aborted) {
    throw new SetupError("cancelled", "The set-up was cancelled; restart the server to go on.");
  }
  if (status !== 0) {
    throw diagnose(output.join("\n"));
  }
}

async function checkSpace(directory: string, needed: number): Promise<void> {
  const { bavail, bsize } = await statfs(directory);
  const free = bavail * bsize;
  if (free < needed) {
    throw new SetupError(
      "disk",
      `Mezzotint's server needs ${(needed / GB).toFixed(1)} GB in ${directory}, and ` +
        `${(free / GB).toFixed(1)} GB are free. Make room and restart the server.`,
    );
  }
}

function findsNvidia(environment: NodeJS.ProcessEnv): boolean {
  const program = WINDOWS ? "nvidia-smi.exe" : "nvidia-smi";
  return (environment["PATH"] ?? "").split(delimiter).some((p) => existsSync(join(p, program)));
}

function pythonOf(directory: string): string {
  return WINDOWS ? join(directory, "Scripts", "python.exe") : join(directory, "bin", "python");
}

/** Holds the digest of the wheel that is installed; written last. */
function markerOf(directory: string): string {
  return join(directory, "mezzotint-wheel.sha256");
}

async function digest(file: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(file), hash);
  return hash.digest("hex");
}
