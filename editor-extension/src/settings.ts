/** The extension's settings. An untrusted workspace decides only some of them (`trusted.ts`). */
import { extensions, workspace } from "vscode";
import type { ConfigurationRequest, LSPAny } from "vscode-languageclient/node";
import { usersOwn, withUsersOwn } from "./trusted.ts";

const SECTION = "mezzotint";

/** One setting, by its name in the section. */
export function setting<T>(name: string, fallback: T): T {
  const settings = workspace.getConfiguration(SECTION);
  if (workspace.isTrusted || !restricted().includes(name)) {
    return settings.get(name, fallback);
  }
  return (usersOwn(settings.inspect(name) ?? {}) as T | undefined) ?? fallback;
}

/** Answers the server's question for its settings: all but those that the extension reads itself. */
export const serverSettings: ConfigurationRequest.MiddlewareSignature = async (
  params,
  token,
  next,
) => {
  const sections = await next(params, token);
  return Array.isArray(sections) ? sections.map(forServer) : sections;
};

function forServer(section: LSPAny): LSPAny {
  if (section === null || typeof section !== "object" || Array.isArray(section)) {
    return section;
  }
  const settings = workspace.getConfiguration(SECTION);
  const { server: _, ...rest } = workspace.isTrusted
    ? section
    : withUsersOwn(section, restricted(), (name) => settings.inspect(name));
  return rest as LSPAny;
}

/** The settings that the manifest keeps from an untrusted workspace, by their names in the section. */
function restricted(): readonly string[] {
  const manifest = extensions.getExtension("mezzotint.mezzotint")?.packageJSON;
  const names: string[] = manifest.capabilities.untrustedWorkspaces.restrictedConfigurations;
  return names.map((name) => name.slice(SECTION.length + 1));
}
