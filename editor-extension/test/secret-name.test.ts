import assert from "node:assert/strict";
import { test } from "node:test";
import { secretName } from "../src/secret-name.ts";

test("a key is kept for a scheme, host and port, whatever the path", () => {
  const name = secretName("https://api.inceptionlabs.ai/v1/fim/completions");
  assert.equal(name, "mezzotint.apiKey https://api.inceptionlabs.ai");
  assert.equal(secretName("https://api.inceptionlabs.ai:443"), name);
  for (const other of [
    "http://api.inceptionlabs.ai",
    "https://api.inceptionlabs.ai:8443",
    "https://api.inceptionlabs.ai.example",
  ]) {
    assert.notEqual(secretName(other), name);
  }
});

test("an address that is no server's has no key", () => {
  for (const url of ["", "unix:/run/engine.sock", "https://", "localhost:80"]) {
    assert.equal(secretName(url), undefined);
  }
});
