// Gives the npm package `solc` the two commands that py-solc-x uses of a compiler: --version and --standard-json.
// USUFRUCT_SOLC_MODULES names the node_modules directory that holds the package. It reads no file but its input.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const solc = createRequire(join(process.env.USUFRUCT_SOLC_MODULES, "index.js"))("solc");
if (process.argv.includes("--standard-json")) {
  process.stdout.write(solc.compile(readFileSync(0, "utf8")));
} else if (process.argv.includes("--version")) {
  process.stdout.write(`Version: ${solc.version()}\n`);
} else {
  process.stderr.write("usage: solc.mjs --version | --standard-json < input.json\n");
  process.exitCode = 2;
}
