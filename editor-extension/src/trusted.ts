/**
 * What an untrusted workspace must not decide. Plain Node, no `vscode`.
 *
 * VS Code itself keeps such a workspace's value of each setting in `restrictedConfigurations` away,
 * but goes by names: `"mezzotint.model.path"`, which is part of the setting `mezzotint.model` and the
 * name of none, reaches whoever reads the section. Nor did it always look into
 * `"mezzotint": {"engine": {"url": …}}`. So we take these settings from the user's own alone.
 */
type Tree = Readonly<Record<string, unknown>>;

/** What `WorkspaceConfiguration.inspect` tells of one setting. */
export interface Inspected {
  readonly defaultValue?: unknown;
  readonly globalValue?: unknown;
}

/** The user's own value of a setting, whatever the workspace says. */
export function usersOwn({ defaultValue, globalValue }: Inspected): unknown {
  if (isTree(defaultValue) && isTree(globalValue)) {
    return { ...defaultValue, ...globalValue };
  }
  return globalValue ?? defaultValue;
}

/**
 * The section `mezzotint` with each setting in `restricted` (dotted names in the section) as the
 * user has it.
 */
export function withUsersOwn(
  section: Tree,
  restricted: readonly string[],
  inspect: (name: string) => Inspected | undefined,
): Tree {
  return restricted.reduce(
    (tree, name) => withValue(tree, name.split("."), usersOwn(inspect(name) ?? {})),
    section,
  );
}

function withValue(tree: Tree, [first = "", ...rest]: readonly string[], value: unknown): Tree {
  const inner = tree[first];
  const below = isTree(inner) ? inner : {};
  return { ...tree, [first]: rest.length === 0 ? value : withValue(below, rest, value) };
}

function isTree(value: unknown): value is Tree {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}
