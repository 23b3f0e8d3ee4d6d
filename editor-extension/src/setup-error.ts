/** Why the extension's own Python environment could not be set up. */
export type SetupProblem = "python" | "disk" | "offline" | "cancelled" | "failed";

/** The message is for the user: what is wrong and what to do about it. */
export class SetupError extends Error {
  readonly problem: SetupProblem;

  constructor(problem: SetupProblem, message: string) {
    super(message);
    this.problem = problem;
  }
}

/** What a failed installation's output says went wrong. */
export function diagnose(output: string): SetupError {
  if (/No space left on device|ENOSPC|not enough space/i.test(output)) {
    return new SetupError("disk", "The disk is full. Make room and restart the server.");
  }
  if (OFFLINE.test(output)) {
    return new SetupError(
      "offline",
      "The Python package index cannot be reached. Connect to the internet (or set pip's proxy or " +
        "index) and restart the server, or name an existing installation in " +
        "mezzotint.server.command.",
    );
  }
  const lines = output.trim().split("\n").filter((line) => line.trim() !== "");
  const last = lines.findLast((line) => /error/i.test(line)) ?? lines.at(-1) ?? "no output";
  return new SetupError("failed", `Installing Mezzotint's server failed: ${last.trim()}`);
}

const OFFLINE = new RegExp(
  [
    "NewConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "ProxyError",
    "Failed to establish a new connection",
    "name resolution",
    "getaddrinfo failed",
    "Network is unreachable",
    "Connection refused",
  ].join("|"),
);
