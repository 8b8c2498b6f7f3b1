// What the tab keeps over a reload: the id of the run that it leads. Rule: nothing else, and never a key.
const KEPT = "run";

export function keep(run: string): void {
  inTab((storage) => storage.setItem(KEPT, run));
}

export function kept(): string | null {
  const run = inTab((storage) => storage.getItem(KEPT));
  return run && /^[0-9a-f]{1,64}$/.test(run) ? run : null;
}

export function forget(): void {
  inTab((storage) => storage.removeItem(KEPT));
}

/** Use what the tab keeps; null where this browser keeps nothing. */
function inTab<T>(act: (storage: Storage) => T): T | null {
  try {
    return act(sessionStorage);
  } catch {
    return null;
  }
}
