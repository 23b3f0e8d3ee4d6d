import assert from "node:assert/strict";
import { test } from "node:test";
import { Coalescer } from "../src/coalescer.ts";

test("requests that wait for the same thing are one, and it runs after what runs now", async () => {
  const coalescer = new Coalescer();
  const ran: string[] = [];
  let unblock = (): void => undefined;
  const blocker = new Promise<void>((resolve) => (unblock = resolve));
  const first = coalescer.request("restart", async () => {
    ran.push("first");
    await blocker;
  });
  await Promise.resolve();
  const second = coalescer.request("restart", async () => void ran.push("second"));
  const third = coalescer.request("restart", async () => void ran.push("third"));
  assert.equal(second, third);
  unblock();
  await Promise.all([first, second, third]);
  assert.deepEqual(ran, ["first", "second"]);
});

test("a stop in between keeps two restarts apart", async () => {
  const coalescer = new Coalescer();
  const ran: string[] = [];
  await Promise.all([
    coalescer.request("restart", async () => void ran.push("restart")),
    coalescer.request("stop", async () => void ran.push("stop")),
    coalescer.request("restart", async () => void ran.push("restart again")),
  ]);
  assert.deepEqual(ran, ["restart", "stop", "restart again"]);
});

test("a failure reaches who asked, and what comes after it still runs", async () => {
  const coalescer = new Coalescer();
  const failing = coalescer.request("restart", () => Promise.reject(new Error("no server")));
  const stopped = coalescer.request("stop", () => Promise.resolve());
  await assert.rejects(failing, /no server/);
  await stopped;
});
