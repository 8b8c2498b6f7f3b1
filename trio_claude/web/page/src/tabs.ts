// The tabs: arrows move, and a panel hears when it is looked at.
import { find } from "./dom";

const seen = new Map<string, () => void>();

export function onSeen(panel: string, look: () => void): void {
  seen.set(panel, look);
}

export function openTabs(): void {
  const tabs = [...find("tabs").querySelectorAll<HTMLElement>('[role="tab"]')];
  for (const tab of tabs) tab.addEventListener("click", () => showTab(tab.getAttribute("aria-controls")!));
  find("tabs").addEventListener("keydown", (event) => {
    const at = tabs.indexOf(document.activeElement as HTMLElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const tab = tabs[(to + tabs.length) % tabs.length]!;
    tab.focus();
    showTab(tab.getAttribute("aria-controls")!);
  });
}

export function showTab(panel: string): void {
  for (const tab of find("tabs").querySelectorAll<HTMLElement>('[role="tab"]')) {
    const name = tab.getAttribute("aria-controls")!;
    tab.setAttribute("aria-selected", String(name === panel));
    tab.tabIndex = name === panel ? 0 : -1;
    find(name).hidden = name !== panel;
  }
  seen.get(panel)?.();
}

export function isSeen(panel: string): boolean {
  return !find(panel).hidden;
}
