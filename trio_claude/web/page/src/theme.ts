// Light, dark, or what the system says. The choice is kept in this browser; nothing else is.
import { find } from "./dom";

const CHOICES = ["system", "light", "dark"] as const;

export function openTheme(): void {
  const button = find("theme");
  let chosen = CHOICES.findIndex((choice) => choice === stored());
  const show = () => {
    const choice = CHOICES[Math.max(0, chosen)]!;
    document.documentElement.dataset.theme = choice;
    button.textContent = `Theme: ${choice}`;
    store(choice);
  };
  button.addEventListener("click", () => {
    chosen = (Math.max(0, chosen) + 1) % CHOICES.length;
    show();
  });
  show();
}

function stored(): string | null {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null; // this browser keeps nothing
  }
}

function store(choice: string): void {
  try {
    localStorage.setItem("theme", choice);
  } catch {
    // then it holds until the page is left
  }
}
