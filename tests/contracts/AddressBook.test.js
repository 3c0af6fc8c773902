import { expect } from "chai";
import { ZERO, deployed, ethers, label, loadFixture } from "./network.js";

const book = (names, addresses) => ethers.deployContract("AddressBook", [names, addresses]);

describe("AddressBook", () => {
  it("finds every contract by its name, in the order given", async () => {
    const n = await loadFixture(deployed);
    const names = ["JobLedger", "UsageRights"].map(label);
    const written = await book(names, [n.jobs.target, n.rights.target]);
    expect(await written.names()).to.deep.equal(names);
    expect(await written.addressOf(label("JobLedger"))).to.equal(n.jobs.target);
    expect(await written.addressOf(label("UsageRights"))).to.equal(n.rights.target);
  });

  it("reverts for a name that it does not hold", async () => {
    const written = await book([], []);
    await expect(written.addressOf(label("JobLedger")))
      .to.be.revertedWithCustomError(written, "AddressBookUnknown")
      .withArgs(label("JobLedger"));
  });

  it("cannot be written with an empty, doubled or unpaired entry", async () => {
    const n = await loadFixture(deployed);
    const { interface: abi } = await book([], []);
    const one = n.jobs.target;
    for (const [names, addresses] of [
      [[label("a")], []],
      [[ZERO], [one]],
      [[label("a")], [ethers.ZeroAddress]],
      [[label("a"), label("a")], [one, n.rights.target]],
    ]) {
      await expect(book(names, addresses)).to.be.revertedWithCustomError({ interface: abi }, "AddressBookInvalid");
    }
  });
});
