import assert from "node:assert/strict";
import { test } from "node:test";
import { type Inspected, usersOwn, withUsersOwn } from "../src/trusted.ts";

test("the user's own value counts, else the default", () => {
  assert.equal(usersOwn({ defaultValue: "", globalValue: "mine" }), "mine");
  assert.equal(usersOwn({ defaultValue: "" }), "");
  assert.deepEqual(usersOwn({ defaultValue: [".env*"], globalValue: [] }), []);
});

test("a group takes what the user leaves out from the default", () => {
  const defaultValue = { level: "warning", includeSource: false };
  assert.deepEqual(usersOwn({ defaultValue, globalValue: { level: "debug" } }), {
    level: "debug",
    includeSource: false,
  });
});

test("a restricted setting is the user's, however the workspace has written it", () => {
  const inspected: Record<string, Inspected> = {
    "engine.url": { defaultValue: "" },
    log: { defaultValue: { includeSource: false }, globalValue: { level: "info" } },
    exclude: { defaultValue: [".env*"] },
  };
  const fromWorkspace = {
    trigger: "manual",
    engine: { url: "http://evil.example", idleUnloadMinutes: 5 },
    log: { includeSource: true },
    exclude: [],
  };
  assert.deepEqual(
    withUsersOwn(fromWorkspace, Object.keys(inspected), (name) => inspected[name]),
    {
      trigger: "manual",
      engine: { url: "", idleUnloadMinutes: 5 },
      log: { includeSource: false, level: "info" },
      exclude: [".env*"],
    },
  );
});

test("what is no group gives way to one", () => {
  const section = withUsersOwn({ engine: 3 }, ["engine.url"], () => ({ defaultValue: "" }));
  assert.deepEqual(section, { engine: { url: "" } });
});
