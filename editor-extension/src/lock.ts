/** A lock file between the windows of one user; one left by a dead process does not count. */
import { open, readFile, rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { SetupError } from "./setup-error.ts";

const POLL_MS = 500;

export class SetupLock {
  private readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  /**
   * Wait until no living process holds the lock, then hold it. `onWait` is called once if that
   * takes time.
   *
   * @throws SetupError when `signal` aborts.
   */
  async acquire(signal: AbortSignal, onWait: () => void): Promise<void> {
    for (let tries = 0; !(await this.tryAcquire()); tries++) {
      if (tries === 0) {
        onWait();
      }
      try {
        await sleep(POLL_MS, undefined, { signal });
      } catch {
        throw new SetupError("cancelled", "The set-up was cancelled; restart the server to go on.");
      }
    }
  }

  async release(): Promise<void> {
    await rm(this.path, { force: true });
  }

  private async tryAcquire(): Promise<boolean> {
    try {
      const file = await open(this.path, "wx");
      await file.write(String(process.pid));
      await file.close();
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") {
        throw error;
      }
    }
    const holder = Number(await readFile(this.path, "utf8").catch(() => ""));
    if (holder > 0 && !isAlive(holder)) {
      await this.release();
    }
    return false;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
