import { createRequire } from "node:module";
import hardhatToolboxMochaEthers from "@nomicfoundation/hardhat-toolbox-mocha-ethers";
import { defineConfig } from "hardhat/config";

const require = createRequire(import.meta.url);

// The same compiler and settings as scripts/build-contracts; nothing is downloaded.
export default defineConfig({
  plugins: [hardhatToolboxMochaEthers],
  solidity: {
    npmFilesToBuild: ["@openzeppelin/contracts/access/manager/AccessManager.sol"],
    compilers: [
      {
        version: "0.8.37",
        path: require.resolve("solc/soljson.js"),
        settings: {
          optimizer: { enabled: true, runs: 200 },
          evmVersion: "cancun",
          metadata: { bytecodeHash: "none" },
        },
      },
    ],
  },
  paths: {
    sources: "./contracts",
    tests: { mocha: "./tests/contracts", solidity: "./tests/contracts" },
    cache: "./.cache/hardhat",
    artifacts: "./.cache/artifacts",
  },
  test: {
    mocha: { timeout: 60_000 },
    solidity: {
      fuzz: { runs: 64 },
      invariant: { runs: 24, depth: 64, failOnRevert: false },
    },
  },
});
