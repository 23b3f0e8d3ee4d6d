/** Under which name an engine's API key is kept. Plain Node, no `vscode`. */

/**
 * A name for the server that `url` leads to, so that no key is ever sent to another one.
 * Undefined for an address that no key belongs to.
 */
export function secretName(url: string): string | undefined {
  if (!/^https?:\/\//.test(url) || !URL.canParse(url)) {
    return undefined;
  }
  return `mezzotint.apiKey ${new URL(url).origin}`;
}
