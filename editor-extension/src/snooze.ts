/** Pauses automatic suggestions for a while, in this window. Plain TypeScript, no `vscode`. */
export class Snooze {
  private end: Date | undefined;
  private timer: NodeJS.Timeout | undefined;
  private readonly onChange: (until: Date | undefined) => void;

  constructor(onChange: (until: Date | undefined) => void) {
    this.onChange = onChange;
  }

  /** When suggestions come back; undefined: they are not paused. */
  get until(): Date | undefined {
    return this.end;
  }

  start(minutes: number): void {
    clearTimeout(this.timer);
    const ms = minutes * 60_000;
    this.end = new Date(Date.now() + ms);
    this.timer = setTimeout(() => this.stop(), ms);
    this.onChange(this.end);
  }

  stop(): void {
    clearTimeout(this.timer);
    this.end = undefined;
    this.onChange(undefined);
  }

  dispose(): void {
    clearTimeout(this.timer);
  }
}
