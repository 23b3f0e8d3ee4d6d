/** The API key of the engine that `mezzotint.engine.url` names, in the editor's secret store. */
import { type SecretStorage, window } from "vscode";
import { openSettings } from "./menu.ts";
import { secretName } from "./secret-name.ts";
import { setting } from "./settings.ts";

/** What the server gets among its initialization options (`docs/editors-protocol.md`). */
export interface ApiKey {
  readonly url: string;
  readonly key: string;
}

/** The key that is stored for the engine in the settings. */
export async function storedKey(secrets: SecretStorage): Promise<ApiKey | undefined> {
  const url = engineUrl();
  const name = secretName(url);
  const key = name && (await secrets.get(name));
  return key ? { url, key } : undefined;
}

/** Ask for the key of the engine in the settings; an empty one forgets it. Says whether it changed. */
export async function askApiKey(secrets: SecretStorage): Promise<boolean> {
  const url = engineUrl();
  const name = secretName(url);
  if (name === undefined) {
    const choose = "Set Address";
    const message = "First set mezzotint.engine.url to the http(s) address that the key is for.";
    if ((await window.showInformationMessage(`Mezzotint: ${message}`, choose)) === choose) {
      await openSettings("mezzotint.engine");
    }
    return false;
  }
  const key = await window.showInputBox({
    title: `API key for ${new URL(url).origin}`,
    prompt: "Kept in the editor's secret store and sent to this address only. Empty: forget it.",
    password: true,
    ignoreFocusOut: true,
  });
  if (key === undefined) {
    return false;
  }
  await (key.trim() === "" ? secrets.delete(name) : secrets.store(name, key.trim()));
  return true;
}

function engineUrl(): string {
  return setting("engine.url", "");
}
