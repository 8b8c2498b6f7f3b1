// Writes dist/client.d.ts and dist/react.d.ts: what tsc declares of the client's modules, put into one file in the order
// of their imports, so that the file can be served and read alone. The names in these modules are distinct.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const LOCAL = /^(?:import|export)\s[^;]*?from "\.\/(\w+)\.js";\n/gm;
const folder = mkdtempSync(".types-");

function gather(name, done = new Set()) {
  if (done.has(name)) return "";
  done.add(name);
  const text = readFileSync(join(folder, `${name}.d.ts`), "utf8");
  const before = [...text.matchAll(LOCAL)].map((found) => gather(found[1], done)).join("");
  return before + text.replace(LOCAL, "").replace(/^export \{\};\n/m, "");
}

try {
  const tsc = join("node_modules", "typescript", "bin", "tsc");
  const flags = ["--noEmit", "false", "--declaration", "--emitDeclarationOnly", "--outDir", folder];
  execFileSync(process.execPath, [tsc, "-p", "tsconfig.json", ...flags], { stdio: "inherit" });
  const entry = readFileSync(join(folder, "client.d.ts"), "utf8");
  const exported = new Set([...entry.matchAll(/\{([^}]*)\}/g)].flatMap((found) => found[1].match(/\w+/g)));
  const kept = gather("client").replace(/^export (declare (?:abstract )?\w+|interface|type) (\w+)/gm, (line, kind, name) =>
    exported.has(name) ? line : `${kind} ${name}`,
  );
  writeFileSync(join("dist", "client.d.ts"), `${kept.replaceAll(/^\/\/.*\n/gm, "")}export {};\n`);
  writeFileSync(join("dist", "react.d.ts"), readFileSync(join(folder, "react.d.ts"), "utf8"));
} finally {
  rmSync(folder, { recursive: true });
}
