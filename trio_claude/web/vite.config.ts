// One build for all that is served, into dist/, always the same bytes: no hash, no time, no map in it.

import { defineConfig } from "vite";

/** React is the application's own, and the hook stands on the client beside it, not on a second copy. */
const isOutside = (id: string, from?: string): boolean =>
  id === "react" || (id === "./client.js" && from !== undefined && from.endsWith("/react.ts"));

export default defineConfig({
  build: {
    outDir: "dist",
    emptyOutDir: true,
    target: "es2022",
    minify: false,
    lib: {
      formats: ["es"],
      entry: { client: "client/client.ts", react: "client/react.ts" },
    },
    rolldownOptions: {
      external: isOutside,
      output: { entryFileNames: "[name].js", chunkFileNames: "[name].js" },
    },
  },
});
