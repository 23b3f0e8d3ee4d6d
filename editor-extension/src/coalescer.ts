/** Runs requests one after the other, and merges equal ones that are still waiting. */
export class Coalescer {
  /** Settles when everything requested so far has ended. */
  private last: Promise<void> = Promise.resolve();
  private waiting: { readonly name: string; readonly done: Promise<void> } | undefined;

  /** Do `work` when what was requested before has ended, however that ended. */
  request(name: string, work: () => Promise<void>): Promise<void> {
    if (this.waiting?.name === name) {
      return this.waiting.done;
    }
    const done = this.last.then(() => {
      if (this.waiting?.done === done) {
        this.waiting = undefined; // from here on, a further request means another run
      }
      return work();
    });
    this.waiting = { name, done };
    this.last = done.catch(() => undefined);
    return done;
  }
}
