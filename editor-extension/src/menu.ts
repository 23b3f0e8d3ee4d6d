/** What a click on the status bar item offers. */
import {
  commands,
  ConfigurationTarget,
  type OpenDialogOptions,
  type QuickPickItem,
  window,
  workspace,
} from "vscode";
import { setting } from "./settings.ts";

interface Model {
  readonly path?: string;
  readonly device?: string;
  readonly dtype?: string;
}

interface Entry extends QuickPickItem {
  readonly run: () => Thenable<unknown>;
}

export async function showMenu(paused: boolean): Promise<void> {
  const enabled = isEnabled();
  const entries: Entry[] = [
    paused
      ? entry("$(debug-continue) Resume suggestions", "mezzotint.resume")
      : entry("$(debug-pause) Pause suggestions for a while…", "mezzotint.snooze"),
    entry(enabled ? "$(circle-slash) Switch off" : "$(check) Switch on", "mezzotint.toggle"),
    entry("$(sparkle) Fill here", "mezzotint.fillHere"),
    entry("$(list-unordered) Fill every hole in this file", "mezzotint.fillHoles"),
    entry("$(eye) Show denoising", "mezzotint.showDenoising"),
    entry("$(package) Choose model…", "mezzotint.chooseModel"),
    entry("$(graph) Statistics", "mezzotint.showStatistics"),
    entry("$(output) Show log", "mezzotint.showLog"),
    entry("$(pulse) Doctor", "mezzotint.doctor"),
    entry("$(refresh) Restart server", "mezzotint.restart"),
    { label: "$(settings-gear) Settings", run: () => openSettings("mezzotint") },
  ];
  const chosen = await window.showQuickPick(entries, { title: "Mezzotint" });
  await chosen?.run();
}

function entry(label: string, command: string): Entry {
  return { label, run: () => commands.executeCommand(command) };
}

/** For how many minutes to pause; undefined: not at all. */
export async function askMinutes(): Promise<number | undefined> {
  const choices = [5, 15, 60, 240].map((minutes) => ({
    label: minutes < 60 ? `${minutes} minutes` : `${minutes / 60} h`,
    minutes,
  }));
  return (await window.showQuickPick(choices, { title: "Pause suggestions for" }))?.minutes;
}

/** Switch completions on or off where the setting was made: in the workspace, else for the user. */
export async function toggleEnabled(): Promise<void> {
  await update("enabled", !isEnabled());
}

interface ModelChoice extends QuickPickItem {
  /** The new value of `mezzotint.model`'s path; undefined where the user gave up. */
  readonly path: () => Promise<string | undefined>;
}

const MODELS: readonly ModelChoice[] = [
  {
    label: "Qwen2.5-Coder 0.5B",
    description: "the default, 491 MB, Apache-2.0",
    path: () => Promise.resolve(""),
  },
  {
    label: "Qwen2.5-Coder 1.5B",
    description: "slower and better, 1.1 GB, Apache-2.0",
    path: () => Promise.resolve("1.5b"),
  },
  {
    label: "A GGUF file…",
    description: "of the Qwen2 or Llama kind, such as llama.cpp's",
    path: () => openedPath({ canSelectFiles: true, filters: { GGUF: ["gguf"] } }),
  },
  {
    label: "A checkpoint folder…",
    path: () => openedPath({ canSelectFiles: false, canSelectFolders: true }),
  },
  {
    label: "A model from the Hugging Face hub…",
    path: async () =>
      (
        await window.showInputBox({
          title: "Model",
          prompt: "Its id. You are told its size and licence before anything is downloaded.",
          placeHolder: "owner/name or owner/name@revision",
        })
      )?.trim() || undefined,
  },
];

/** Take a model that has a name, or one from a file, a folder or the hub. `offer` has the server ask
 * once more whether to download the one that is set already. */
export async function chooseModel(offer: () => Promise<void>): Promise<void> {
  const current = setting<Model>("model", {}).path ?? "";
  const options = { title: "Model", placeHolder: current || "The default: Qwen2.5-Coder 0.5B" };
  const path = await (await window.showQuickPick(MODELS, options))?.path();
  if (path === undefined) {
    return;
  }
  if (path === current) {
    await offer();
  } else {
    await updateModel(path || undefined);
  }
}

async function openedPath(what: OpenDialogOptions): Promise<string | undefined> {
  const [opened] = (await window.showOpenDialog({ ...what, openLabel: "Use This Model" })) ?? [];
  return opened?.fsPath;
}

export function openSettings(query: string): Thenable<unknown> {
  return commands.executeCommand("workbench.action.openSettings", query);
}

function isEnabled(): boolean {
  return workspace.getConfiguration("mezzotint").get("enabled", true);
}

/** Change which model it is and leave device and number format as they are. */
async function updateModel(path: string | undefined): Promise<void> {
  const values = workspace.getConfiguration("mezzotint").inspect<Model>("model");
  const { path: _, ...others } = values?.workspaceValue ?? values?.globalValue ?? {};
  const model: Model = path === undefined ? others : { ...others, path };
  await update("model", Object.keys(model).length > 0 ? model : undefined);
}

async function update(key: string, value: unknown): Promise<void> {
  const settings = workspace.getConfiguration("mezzotint");
  const inWorkspace = settings.inspect(key)?.workspaceValue !== undefined;
  const target = inWorkspace ? ConfigurationTarget.Workspace : ConfigurationTarget.Global;
  await settings.update(key, value, target);
}
