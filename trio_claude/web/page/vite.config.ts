// Builds the page into ../dist, beside the client: fixed names, nothing inline, and the licences of all that is bundled.
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { defineConfig, type Plugin } from "vite";

const OUT = "../dist";

/** Write the licence of each package whose code is in the bundle. */
function licences(): Plugin {
  return {
    name: "licences",
    generateBundle(_options, bundle) {
      const packages = new Set<string>();
      for (const part of Object.values(bundle)) {
        if (part.type !== "chunk") continue;
        for (const id of part.moduleIds) {
          const found = /^.*\/node_modules\/(?:@[^/]+\/)?[^/]+/.exec(id);
          if (found) packages.add(found[0]);
        }
      }
      const texts = [...packages].sort().map(licence);
      this.emitFile({ type: "asset", fileName: "LICENSES.txt", source: texts.join(`\n${"-".repeat(78)}\n\n`) });
    },
  };
}

function licence(folder: string): string {
  const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const files = readdirSync(folder).filter((name) => /^licen[sc]e/i.test(name)).sort();
  if (!files.length) throw new Error(`${about.name} brings no licence`);
  return `${about.name} ${about.version} (${about.license})\n\n${readFileSync(join(folder, files[0]!), "utf8").trim()}\n`;
}

export default defineConfig({
  base: "./", // a proxy may have put the page anywhere
  plugins: [licences()],
  build: {
    outDir: OUT,
    emptyOutDir: false,
    target: "es2023",
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    rollupOptions: {
      output: { entryFileNames: "page.js", chunkFileNames: "[name].js", assetFileNames: "page[extname]" },
    },
  },
});
