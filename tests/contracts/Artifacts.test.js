import { readFileSync, readdirSync } from "node:fs";
import { expect } from "chai";
import hre from "hardhat";

const SHIPPED = new URL("../../sdk/usufruct/ledger/artifacts/", import.meta.url);

describe("Artifacts", () => {
  it("that the package ships are the code that these tests run", async function () {
    if (hre.globalOptions.coverage) this.skip();
    const names = readdirSync(SHIPPED).filter((name) => name !== "standard-input.json");
    expect(names.length).to.equal(14);
    for (const name of names) {
      const shipped = JSON.parse(readFileSync(new URL(name, SHIPPED), "utf8"));
      const built = await hre.artifacts.readArtifact(shipped.contractName);
      expect(built.bytecode, name).to.equal(shipped.bytecode);
      expect(built.deployedBytecode, name).to.equal(shipped.deployedBytecode);
      expect(built.abi, name).to.deep.equal(shipped.abi);
    }
  });
});
